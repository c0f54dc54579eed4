"""The doctor reports what it finds, whatever is missing or broken."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import rewards
from rl import doctor

ROOT = Path(__file__).resolve().parent.parent


def run_doctor(**environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"COLUMNS": "200", "WANDB_API_KEY": "", "NETRC": os.devnull} | environment
    return subprocess.run([sys.executable, "-m", "rl.doctor"], cwd=ROOT, env=variables, capture_output=True, text=True)


@pytest.mark.slow
def test_without_vllm_and_ray_it_reports_both_and_exits_with_1(tmp_path: Path) -> None:
    for name in ("vllm", "ray"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")")
    done = run_doctor(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "The main job cannot run: vllm, ray." in done.stdout
    rows = {cells[1].strip(): cells[2:4] for line in done.stdout.splitlines() if len(cells := line.split("│")) > 4}
    assert rows["torch"][0].strip() == "ok"
    assert rows["vllm"][0].strip() == "problem" and "No module named 'vllm'" in rows["vllm"][1]
    assert "recorded offline" in rows["wandb"][1]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_in_this_environment_the_main_job_can_run() -> None:
    done = run_doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plugin registered" in done.stdout


@pytest.mark.parametrize(("name", "state"), [("ray", "problem"), ("wandb", "warning")])
def test_a_check_that_raises_is_a_finding_as_grave_as_what_it_checks(
    name: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> doctor.Finding:
        raise RuntimeError("libcrypto.so [3] is too old")

    monkeypatch.setitem(doctor.CHECKS, name, broken)
    finding = doctor.examine(name)
    assert (finding.state, finding.found) == (state, "RuntimeError: libcrypto.so [3] is too old")
    assert finding.remedy == "run `make setup`, or install the package again"


def test_a_package_of_another_that_has_the_name_of_ours_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.check_packages().state == "ok"
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").touch()
    spec = importlib.util.spec_from_file_location("rewards", tmp_path / "rewards" / "__init__.py")
    monkeypatch.setattr(rewards, "__spec__", spec)
    finding = doctor.check_packages()
    assert (finding.state, finding.found) == ("problem", "rewards is another's")


def test_every_needed_name_has_a_check() -> None:
    assert set(doctor.CHECKS) >= doctor.NEEDED


def test_brackets_in_a_message_are_shown_and_not_read_as_markup() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(
        doctor.findings_table([doctor.finding("torch", "no [cuda] here", problem=True, remedy="pip install '.[cuda]'")])
    )
    text = console.export_text()
    assert "no [cuda] here" in text and "pip install '.[cuda]'" in text


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_only_a_problem_sets_the_exit_status(state: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor.Finding(name="vllm", state=state, found="")  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "CHECKS", {"vllm": lambda: finding})
    assert doctor.main() == status


@pytest.mark.parametrize(("gib", "state"), [(0.06, "warning"), (2, "ok")])
def test_a_containers_default_shared_memory_is_a_warning(
    gib: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(total=gib * 2**30))
    finding = doctor.check_shm()
    assert (finding.state, bool(finding.remedy)) == (state, state == "warning")


@pytest.mark.parametrize(("gib", "state"), [(0.5, "problem"), (5, "warning"), (50, "ok")])
def test_a_disk_too_full_for_a_checkpoint_is_a_problem(gib: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=gib * 2**30))
    assert doctor.check_disk().state == state


@pytest.mark.parametrize(("version", "state"), [("550.54.15", "warning"), ("580.65.06", "ok"), ("590.1", "ok")])
def test_a_driver_that_is_too_old_for_the_pinned_torch_is_a_warning(
    version: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    answer = SimpleNamespace(returncode=0, stdout=f"{version}\n{version}\n", stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **options: answer)
    assert doctor.check_driver().state == state
