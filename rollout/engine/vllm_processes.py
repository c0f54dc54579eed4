"""vLLM's processes: a fork on CPUs, exit with the parent, removal of leaked shared memory, no teardown by Python.

vLLM 0.32 leaves its processes' shared memory in /dev/shm when they are terminated.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.util
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

import psutil

ENGINE_PROCESS_VAR = "SAPO_ENGINE"
"""The environment variable that marks an engine's processes. The hooks leave a user's other vLLM processes alone."""
SHARED_MEMORY = "/dev/shm/"
NAMES = ("psm_", "sem.")
"""Prefixes of the segments and semaphores of Python's multiprocessing. Ray's files have other names."""


def exit_with_parent() -> None:
    """Makes this process exit as soon as the process that spawned it has ended, and removes its shared memory."""
    parent = multiprocessing.parent_process()
    if parent is None or not os.environ.get(ENGINE_PROCESS_VAR):
        return

    def wait() -> None:
        parent.join()  # its end of a pipe closes, whatever kills it
        # Unlinking removes the name at once. The memory is freed when the last process that maps it has exited here.
        for segment in segments_of([psutil.Process()]) | semaphores_of(os.getpid()):
            segment.unlink(missing_ok=True)
        os._exit(1)

    Thread(target=wait, daemon=True, name="exit-with-parent").start()


def exit_without_teardown() -> None:
    """Makes a vLLM process exit as soon as vLLM has shut down and multiprocessing's finalizers have run.

    Python would then take apart 7,000 modules, which costs 3 CPU seconds and frees nothing that the exit does not free.
    """
    if multiprocessing.parent_process() is not None and os.environ.get(ENGINE_PROCESS_VAR):
        multiprocessing.util.Finalize(None, _exit_unless_failed, exitpriority=-1000)


def resend_media_of_cached_prompts() -> None:
    """Makes vLLM's scheduler send a prompt's media to its worker on the CPU even if the prompt's prefix is cached.

    vLLM 0.32 leaves them out, since nothing encodes them again. But a weight sync drops the cache, and a request that it meets is
    computed again: the worker dies for lack of its media. Scheduler and worker share a process here, so sending them costs nothing.
    """
    from vllm.platforms import current_platform
    from vllm.v1.core.sched import output

    if current_platform.is_cpu():
        output.strip_covered_mm_data = lambda mm_features, *_, **__: mm_features


def unlink_locks_at_once() -> None:
    """Makes locks of a vLLM process on CPUs nameless: no file in /dev/shm stays when Ray kills the process and its tracker.

    Python unlinks a lock as it is made if child processes are to be forked. vLLM names its own method for each child.
    """
    from vllm.platforms import current_platform

    is_child = multiprocessing.parent_process() is not None
    if is_child and os.environ.get(ENGINE_PROCESS_VAR) and current_platform.is_cpu():
        multiprocessing.set_start_method("fork", force=True)


class _ForkedProcess(ForkProcess):
    """vLLM's process as a copy of the engine's. vLLM has called its plugins before the fork, so their hooks run here."""

    def start(self) -> None:
        """Forks in a new thread. The copy lacks OpenMP's threads, and a thread that has worked with them would wait for them."""
        forking = Thread(target=super().start)
        forking.start()
        forking.join()

    def run(self) -> None:
        """Runs vLLM in the copy."""
        import torch

        exit_with_parent()
        unlink_locks_at_once()
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        if (ray := sys.modules.get("ray")) is not None:
            ray._raylet.setproctitle("VLLM::EngineCore")  # vLLM cannot name a process that Ray has named
        # vLLM collects garbage eight times as it starts, and before it exits unfreezes everything and collects twice. Each time it
        # would look through all that the parent has: .4 CPU seconds.
        gc.freeze()
        with mock.patch("gc.unfreeze"):
            super().run()


class _ForkedContext(ForkContext):
    Process = _ForkedProcess


def forked_processes() -> AbstractContextManager[Any]:
    """Makes vLLM fork its process on CPUs. A spawned process would repeat all imports, which take half of an engine's start."""
    return mock.patch("vllm.v1.engine.utils.get_mp_context", _ForkedContext)


def _exit_unless_failed() -> None:
    error = sys.exc_info()[1]
    if error is None or (isinstance(error, SystemExit) and not error.code):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def imports_of_vllm() -> Iterator[None]:
    """Pauses the garbage collector, which looks through vLLM's 7,000 modules again and again: 2 CPU seconds for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def wait_until_ended(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Waits until none of the processes runs. A zombie, which its parent has not collected yet, counts as ended."""
    deadline = time.monotonic() + seconds
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.02)


def segments_of(processes: Iterable[psutil.Process]) -> set[Path]:
    """Returns the files in /dev/shm that any of the processes maps."""
    found: set[Path] = set()
    for process in processes:
        with suppress(OSError):  # it has ended in the meantime
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                _, mark, name = line.partition(SHARED_MEMORY)
                if mark and name.startswith(NAMES) and not name.endswith("(deleted)"):
                    found.add(Path(SHARED_MEMORY + name))
    return found


def semaphores_of(pid: int) -> set[Path]:
    """Returns joblib's semaphores of a process. Their names carry its id, and no process maps them."""
    return set(Path(SHARED_MEMORY).glob(f"sem.loky-{pid}-*"))


def remove_unmapped(segments: Iterable[Path]) -> None:
    """Removes the segments that no process maps any more."""
    for segment in set(segments) - segments_of(psutil.process_iter()):
        segment.unlink(missing_ok=True)
