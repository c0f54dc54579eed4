"""Several ranks on this machine: processes that stay for the whole session, and join in a process group for each call."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120
"""After which ranks that run different collectives give up."""


class RankPool:
    """Processes, each of which is always the same rank.

    Args:
        size: How many.
        scratch: A folder for the files by which they meet.
    """

    def __init__(self, size: int, scratch: Path) -> None:
        context = multiprocessing.get_context(
            "forkserver"
        )  # copies of a process with the imports, which take 6 CPU seconds
        context.set_forkserver_preload(["tests.learning"])
        self._processes = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_exit_without_teardown) for _ in range(size)
        ]
        self._scratch, self._calls = scratch, 0

    def run(self, num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls a function of a module on ranks 0 to `num_ranks` − 1 at once; returns what each returned."""
        self._calls += 1
        meeting_point = str(self._scratch / f"meeting_{self._calls}")
        calls = [
            process.submit(_as_rank, rank, num_ranks, meeting_point, function, args)
            for rank, process in enumerate(self._processes[:num_ranks])
        ]
        return [call.result() for call in calls]

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.shutdown()


def _exit_without_teardown() -> None:
    """Skips the taking apart of all modules at this process's end, two CPU seconds."""
    multiprocessing.util.Finalize(None, os._exit, args=(0,), exitpriority=-1000)


def _as_rank(rank: int, num_ranks: int, meeting_point: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_point}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=SECONDS),
    )
    try:
        return function(*args)
    finally:
        dist.destroy_process_group()
