"""A process whose parent is killed ends with it and leaves no shared memory, and only where it is an engine's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rollout.engine.vllm_processes import ENGINE_PROCESS_VAR

PARENT = """
import multiprocessing, time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
def child():
    from rollout.engine.vllm_processes import exit_with_parent
    pid, segment = multiprocessing.current_process().pid, SharedMemory(create=True, size=1)
    semaphore = Path(f"/dev/shm/sem.loky-{pid}-test")
    semaphore.touch()
    exit_with_parent()
    print(pid, Path("/dev/shm") / segment.name, semaphore, flush=True)
    time.sleep(60)
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child).start()
    time.sleep(60)
"""


@pytest.mark.parametrize("is_engine", [True, False])
def test_what_an_engine_has_spawned_ends_when_the_engine_is_killed(is_engine: bool, tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), ENGINE_PROCESS_VAR: "1" if is_engine else ""}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid, *names = parent.stdout.readline().split()
    child, shared = psutil.Process(int(pid)), [Path(name) for name in names]
    assert all(path.exists() for path in shared)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + (10 if is_engine else 0.5)
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    has_ended = not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    left = [path for path in shared if path.exists()]
    if not has_ended:
        child.kill()
    for path in left:
        path.unlink(missing_ok=True)
    parent.stdout.close()
    assert has_ended == is_engine
    assert left == ([] if is_engine else shared)
