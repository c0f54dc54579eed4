"""vLLM's processes end with the one that spawned them, and so does their shared memory: killed itself, it clears nothing away."""

from __future__ import annotations

import multiprocessing
import os
from threading import Thread

import psutil

from rollout.shared_segments import segments_of, semaphores_of

SWITCH = "SAPO_ENGINE"
"""The environment variable by which an engine's processes are known; another vLLM of the user's is left alone."""


def end_with_parent() -> None:
    """Has this process end as soon as the one that spawned it is gone, however it went, and leave no shared memory."""
    parent = multiprocessing.parent_process()
    if parent is None or not os.environ.get(SWITCH):
        return

    def wait() -> None:
        parent.join()  # its end of a pipe closes, whatever kills it
        # A name is gone at once; the memory is, when the last who maps it has come here.
        for segment in segments_of([psutil.Process()]) | semaphores_of(os.getpid()):
            segment.unlink(missing_ok=True)
        os._exit(1)

    Thread(target=wait, daemon=True, name="lifeline").start()
