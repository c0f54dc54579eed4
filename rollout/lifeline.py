"""vLLM's processes end with the one that spawned them: killed itself, it can clear nothing away."""

from __future__ import annotations

import multiprocessing
import os
from threading import Thread

SWITCH = "SAPO_ENGINE"
"""The environment variable by which an engine's processes are known; another vLLM of the user's is left alone."""


def end_with_parent() -> None:
    """Has this process end as soon as the one that spawned it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None or not os.environ.get(SWITCH):
        return

    def wait() -> None:
        parent.join()  # its end of a pipe closes, whatever kills it
        os._exit(1)

    Thread(target=wait, daemon=True, name="lifeline").start()
