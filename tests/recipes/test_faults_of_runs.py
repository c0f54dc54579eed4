"""Runs that lose their learner: it is replaced, engines stay, and metrics are those of the undisturbed run. Real Ray, real vLLM."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import ray

from tests.recipes.running import run_here
from tests.recipes.test_resume import recipe, rows

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("cluster")]


def own(name: str) -> list[psutil.Process]:
    """Returns the processes of this test's cluster with this in their names."""
    return [child for child in psutil.Process().children(recursive=True) if name in child.name()]


@contextmanager
def at_step(run_dir: Path, step: int, do: Callable[[], object]) -> Iterator[None]:
    """Does something as soon as a run has logged a step, once, in a thread."""
    over = threading.Event()

    def wait() -> None:
        metrics = run_dir / "metrics.jsonl"
        while not over.is_set():
            if metrics.exists() and f'{{"step": {step},' in metrics.read_text():
                do()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def comparable(run_dir: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "failures" not in name} for row in rows(run_dir)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("faults") / "undisturbed"
    run_here("digit_sums", recipe(run_dir))
    return run_dir


@pytest.mark.parametrize("step", [2, 5], ids=["before the first checkpoint", "after a checkpoint"])
def test_a_killed_learner_is_replaced_in_the_run_and_nothing_else_is(undisturbed: Path, step: int):
    run_dir = undisturbed.with_name(f"killed_at_{step}")
    engines: list[tuple[int, float]] = []

    def kill() -> None:
        engines.extend((each.pid, each.create_time()) for each in own("VLLM::EngineCore"))
        (learner,) = own("_LearnerActor")
        learner.send_signal(signal.SIGKILL)

    def alive() -> None:
        engines.extend((each.pid, each.create_time()) for each in own("VLLM::EngineCore"))

    with at_step(run_dir, step, kill), at_step(run_dir, step + 1, alive):
        run_here("digit_sums", recipe(run_dir))
    assert comparable(run_dir) == comparable(undisturbed)
    assert len(engines) == 2 and engines[0] == engines[1]
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["policy/learner_failures"] == 1 and last["rollout/engine_failures"] == 0


KEY = "sk-canary-1f3a9b"


def test_a_run_on_one_machine_listens_on_the_loopback_interface_alone_and_writes_no_key(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch
):
    run_dir, found = undisturbed.with_name("listening"), set()
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, KEY)

    def look() -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                found.update((process.name(), each.laddr.ip) for each in process.net_connections() if not each.raddr)

    with at_step(run_dir, 2, look):
        run_here("digit_sums", recipe(run_dir, "--learner.cpu-ranks", "2", "--steps", "3"))
    names = {name for name, _ in found}
    assert any("raylet" in name for name in names) and any("_LearnerActor" in name for name in names)
    assert {address for _, address in found} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [path for folder in (run_dir, session) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if KEY.encode() in path.read_bytes()]
