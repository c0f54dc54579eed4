"""The lengths of responses, and the check that both sides have the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MOST_ERRORS = 4.0
"""Largest difference of means, in its standard errors: chance exceeds it once in 16,000 comparisons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthStatistics:
    """Responses and their lengths, in tokens."""

    count: float
    mean: float
    std: float

    @staticmethod
    def of(rows: Iterable[Mapping[str, float]]) -> LengthStatistics:
        """Returns the lengths of several steps' responses."""
        rows = list(rows)
        count, tokens, squared = (sum(row[name] for row in rows) for name in ("sequences", "tokens", "tokens_squared"))
        mean = tokens / count
        return LengthStatistics(count=count, mean=mean, std=math.sqrt(max(0.0, squared / count - mean**2)))

    @property
    def error(self) -> float:
        """The mean's standard error."""
        return self.std / math.sqrt(self.count)


def require_equal_lengths(case: str, ours: LengthStatistics, trl: LengthStatistics, expected: float) -> None:
    """Checks that the mean lengths differ by no more than chance explains, from each other and from what is expected.

    Raises:
        RuntimeError: They differ, so seconds cannot be compared.
    """
    for found, others, error in (
        (ours.mean, trl.mean, math.hypot(ours.error, trl.error)),
        (ours.mean, expected, ours.error),
        (trl.mean, expected, trl.error),
    ):
        if abs(found - others) > MOST_ERRORS * error + 1e-9:
            raise RuntimeError(
                f"{case}: responses have {ours.mean:.2f} ± {ours.error:.2f} tokens in ours and {trl.mean:.2f} ± {trl.error:.2f} in "
                f"TRL, {expected:.2f} are expected: their seconds cannot be compared"
            )
