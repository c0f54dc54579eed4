"""Seconds of consecutive phases."""

from __future__ import annotations

import time


class Stopwatch:
    """Measures consecutive phases; it starts when it is made."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self._seconds[phase] = now - self._last
        self._last = now

    def metrics(self) -> dict[str, float]:
        """`time/<phase>` of every finished phase, in seconds."""
        return {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}

    @property
    def total(self) -> float:
        """Seconds from the start to the end of the last phase."""
        return self._last - self._begin
