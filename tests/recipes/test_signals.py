"""Runs that a signal ends, as a scheduler does: status, checkpoint, resume to the last digit, nothing left. Real Ray, real vLLM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rl.run_dir.checkpoint import list_checkpoints, step_of
from rl.run_dir.sums import damage_of
from rl.signals.supervisor import SUPERVISOR_VAR
from rollout.engine.vllm_processes import segments_of, semaphores_of
from tests.recipes.running import run_here
from tests.recipes.test_resume import recipe, rows, wait_for_row

pytestmark = pytest.mark.engine


def processes_with(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SIGNAL_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


class SignalledRun:
    """A run in a process group of its own, with its supervisor."""

    def __init__(self, run_dir: Path, *options: str) -> None:
        self.run_dir, self.mark = run_dir, f"{os.getpid()}-{run_dir}"
        self.temporary = Path(tempfile.mkdtemp(prefix="s-"))  # short: Ray's sockets are in it
        environment = {**os.environ, "SIGNAL_TEST": self.mark, "TMPDIR": str(self.temporary)}
        del environment[SUPERVISOR_VAR]
        self.log = run_dir.parent / f"{run_dir.name}.log"
        command = [sys.executable, "-m", "recipes.digit_sums", *recipe(run_dir), *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, process_group=0
            )

    def wait_for(self, name: str) -> None:
        """Waits until a process with this in its name is there."""
        deadline = time.monotonic() + 120
        while not any(name in process.name() for process in processes_with(self.mark)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Sends the group a signal, checks the end, and returns its duration in seconds."""
        living = processes_with(self.mark)
        shared = segments_of(living) | {path for process in living for path in semaphores_of(process.pid)}
        sent = time.monotonic()
        os.killpg(self.process.pid, number)
        assert self.process.wait(90) == 128 + number, self.log.read_text()
        seconds = time.monotonic() - sent
        text = self.log.read_text()
        assert f"stopped by {signal.Signals(number).name}; --resume auto goes on" in text
        assert not any(word in text for word in ("Traceback", "SIGABRT", "core dumped", "Check failed")), text
        assert processes_with(self.mark) == []
        assert [path for path in shared if path.exists()] == []
        left = [*self.temporary.iterdir(), *(self.temporary / "ray").glob("*")]
        # torch's cache of compiled code is meant to stay.
        assert {path.name for path in left if not path.is_symlink()} <= {
            "ray",
            "ray_current_cluster",
            "torchinductor_root",
        }
        shutil.rmtree(self.temporary)
        return seconds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run_dir = tmp_path_factory.mktemp("signals") / "undisturbed"
    run_here("digit_sums", recipe(run_dir))
    yield run_dir


def steps(run_dir: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run_dir)]


def test_in_a_step_a_signal_costs_nothing_that_was_learned(undisturbed: Path):
    run = SignalledRun(undisturbed.parent / "in_a_step")
    wait_for_row(run.process, run.run_dir, 4)
    assert run.stop() < 60
    (newest,) = (path for path in list_checkpoints(run.run_dir) if step_of(path) > 3)
    assert damage_of(newest) == ""
    assert [row["step"] for row in rows(run.run_dir)][-1] == step_of(newest) >= 4
    run_here("digit_sums", [*recipe(run.run_dir), "--resume", "auto"])
    assert rows(run.run_dir) == rows(undisturbed)


def test_while_it_starts_a_signal_ends_it_and_leaves_nothing(undisturbed: Path):
    run = SignalledRun(undisturbed.parent / "at_the_start")
    run.wait_for("VLLM::EngineCore")
    assert run.stop() < 60
    assert steps(run.run_dir) == []
