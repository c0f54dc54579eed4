"""Results of calls to all ranks of the learner, and the reason if a rank has failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

from rl.types import LearnerFailed
from rollout.ray_calls import ray_get

ERROR_GRACE_SECONDS = 10.0
"""Seconds in which other ranks may still report an error after the first one."""
DEATH, ERROR, BROKEN_COLLECTIVE, NO_ERROR = range(4)
"""Outcomes of a rank's call, in the order in which one explains another."""
OF_A_COLLECTIVE = ("disterror", "distbackend", "diststore", "gloo", "nccl")
LOST_WITH_THE_PROCESS = ("OutOfMemoryError", "MemoryError", "AcceleratorError", "WeightsNotFinite")
"""Errors after which the rank's process is of no use, and a new one with earlier weights may be."""


def results_of(
    calls: Sequence[ray.ObjectRef], *, ranks: Sequence[int] | None = None, timeout: float | None = None
) -> list[Any]:
    """Waits for a call of each rank. Returns their results in rank order.

    Args:
        calls: One call of each rank.
        ranks: The ranks, for messages; default: all, from 0.
        timeout: Seconds after which the ranks count as hanging; None waits without a limit.

    Raises:
        LearnerFailed: A rank has died, has run out of memory, or hangs.
        ValueError: A rank has raised it; the message is the rank's. Other ranks may wait for that rank forever.
        RuntimeError: As ValueError, for any other error.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    rank_of = dict(zip(calls, ranks or range(len(calls)), strict=True))
    waiting = list(calls)
    while waiting:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        done, waiting = ray.wait(waiting, timeout=left)
        if not done:
            late = ", ".join(str(rank_of[call]) for call in waiting)
            raise LearnerFailed(
                f"rank {late} of the learner has not answered within learner.step_timeout = {timeout:g} s"
            )
        if _outcome(done[0]) != NO_ERROR:
            grace = {"num_returns": len(waiting), "timeout": ERROR_GRACE_SECONDS}
            others = ray.wait(waiting, **grace)[0] if waiting else []
            failed = min([*done, *others], key=_outcome)
            _raise_error(failed, f"rank {rank_of[failed]} of the learner: ")
    return list(ray.get(list(calls)))


def _raise_error(call: ray.ObjectRef, rank: str) -> None:
    """Raises the error of a call."""
    outcome = _outcome(call)
    try:
        ray_get(call)
    except (ValueError, RuntimeError) as error:
        is_lost = any(name in str(error) for name in LOST_WITH_THE_PROCESS)
        kind = type(error) if outcome == ERROR and not is_lost else LearnerFailed
        raise kind(f"{rank}{error}") from error


def _outcome(call: ray.ObjectRef) -> int:
    """Returns the outcome of a call that has ended."""
    try:
        ray.get(call)
    except ray.exceptions.RayTaskError as error:
        text = f"{type(error.cause).__name__} {error.cause}".lower()
        return BROKEN_COLLECTIVE if any(word in text for word in OF_A_COLLECTIVE) else ERROR
    except ray.exceptions.RayError:
        return DEATH
    return NO_ERROR
