"""Limits on what a judge may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeLimits:
    """Limits on a judge's calls and time, for each reward worker on its own where nothing else is written.

    Raises:
        ValueError: A limit is out of range.
    """

    max_calls: int | None = None
    """Calls, after which there are errors and no verdicts; `None`: any number.

    Cached verdicts and failed requests are free. With a cache, the file counts the calls of a model for all processes and
    runs. Without one, each process counts from its start, and the replacement of a killed process starts at 0.
    """
    concurrency: int = 8
    """Requests that run at the same time."""
    attempts: int = 3
    """Requests for one verdict, where they fail or the reply holds no verdict."""
    timeout: float = 8.0
    """Seconds for a verdict, with all its attempts and its wait for one of the `concurrency` places.

    Keep it below the runner's limit (`--reward-timeout`, 10 s), which costs a whole group its verdicts.
    """

    def __post_init__(self) -> None:
        if self.max_calls is not None and self.max_calls < 0:
            raise ValueError(f"max_calls of a judge must be >= 0, or None for any number, got {self.max_calls}")
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a judge must be >= 1, got {getattr(self, name)}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout of a judge must be > 0 seconds, got {self.timeout}")
