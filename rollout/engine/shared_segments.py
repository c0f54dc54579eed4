"""The shared memory that vLLM's processes talk through: they leave it behind in /dev/shm when they are told to end (0.32)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

SHARED_MEMORY = "/dev/shm/"
NAMES = ("psm_", "sem.")
"""What Python's multiprocessing calls its segments and semaphores; Ray's own files have other names."""


def wait_until_ended(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Waits until none of the processes runs any more; one that its parent has not yet taken note of has ended, too."""
    deadline = time.monotonic() + seconds
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.02)


def segments_of(processes: Iterable[psutil.Process]) -> set[Path]:
    """The files in /dev/shm that any of the processes maps."""
    found: set[Path] = set()
    for process in processes:
        with suppress(OSError):  # it has ended in the meantime
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                _, mark, name = line.partition(SHARED_MEMORY)
                if mark and name.startswith(NAMES) and not name.endswith("(deleted)"):
                    found.add(Path(SHARED_MEMORY + name))
    return found


def semaphores_of(pid: int) -> set[Path]:
    """joblib's, which carry the number of their process and are not mapped."""
    return set(Path(SHARED_MEMORY).glob(f"sem.loky-{pid}-*"))


def remove_unmapped(segments: Iterable[Path]) -> None:
    """Removes those that no process maps any more."""
    for segment in set(segments) - segments_of(psutil.process_iter()):
        segment.unlink(missing_ok=True)
