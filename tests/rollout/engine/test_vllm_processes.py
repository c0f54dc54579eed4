"""vLLM's processes: they end with a parent that is killed, leave no shared memory, and compute with threads after a fork."""

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


COMPUTE = """
import gc, os, torch, vllm.v1.engine.utils as utils
from rollout.engine.vllm_processes import forked_processes
def compute():
    total = torch.ones(1000, 1000).mm(torch.ones(1000, 1000)).sum()
    gc.unfreeze()
    print(torch.get_num_threads(), int(total), gc.get_freeze_count() > 100_000, flush=True)
torch.set_num_threads(2)
compute()
with forked_processes():
    process = utils.get_mp_context().Process(target=compute)
process.start()
process.join(30)
print(process.exitcode, flush=True)
process.kill()
os._exit(0)
"""


@pytest.mark.slow
def test_a_forked_process_computes_with_two_threads_as_its_parent_has_and_does_not_collect_its_garbage() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run([sys.executable, "-c", COMPUTE], env=environment, capture_output=True, text=True)
    # Threads that only the parent has would be waited for without end.
    assert done.stdout.splitlines() == ["2 1000000000 False", "2 1000000000 True", "0"], done.stderr[-2000:]
