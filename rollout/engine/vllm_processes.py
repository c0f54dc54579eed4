"""What our engines ask of vLLM's processes: they end with the one that spawned them, and so does their shared memory, for killed
itself it clears nothing away; and on CPUs they leave the cores to others while they wait for one another."""

from __future__ import annotations

import multiprocessing
import os
import time
from functools import partial
from threading import Thread

import psutil

from rollout.engine.shared_segments import segments_of, semaphores_of

SWITCH = "SAPO_ENGINE"
"""The environment variable by which an engine's processes are known; another vLLM of the user's is left alone."""

DOZE = 1e-4
"""Seconds; a step of a small policy takes thirty times as long and more."""


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


def sleep_while_waiting() -> None:
    """Has an engine's processes on CPUs doze while they wait for one another.

    For a second after each message vLLM's look for the next one without a pause: of two cores, one computes then and the other
    waits, which is a third and more of a generation's processor time. They may not sleep until they are woken, as they do after
    that second: of two calls within a millisecond the second may get lost.
    """
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.platforms import current_platform

    if os.environ.get(SWITCH) and current_platform.is_cpu():
        shm_broadcast.sched_yield = partial(time.sleep, DOZE)
