"""Runs all checks on one function."""

from __future__ import annotations

from dataclasses import dataclass

from rl.objectives.faults.checks import CHECKS, Check
from rl.objectives.faults.subject import Comparison, Subject, gradient, make_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of one check."""

    check: Check
    comparison: Comparison | None
    """The first one that fails, or the check's first one if all hold. None if the function raised."""
    error: str = ""
    """The exception of a call during this check."""

    @property
    def holds(self) -> bool:
        """True if the function does not have this fault."""
        return self.comparison is not None and self.comparison.holds


def find_faults(objective: Subject) -> list[Result]:
    """Returns the result of every check, in the order of `CHECKS`.

    Args:
        objective: A function of `(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)`, and by keyword of those of `tau_pos`,
            `tau_neg` and `num_sequences` that it takes. It returns a loss, or a tuple that begins with it.

    Raises:
        ValueError: It fails on a plain batch in float64.
    """
    try:
        found_BT = gradient(objective, make_batch([[0.1, -0.1, 0.0], [0.2, 0.0, 0.0]], [1.0, -1.0], [3, 2]))
    except Exception as error:
        raise ValueError(f"the objective failed on a plain batch of two sequences: {_describe(error)}") from error
    if not found_BT.any():
        raise ValueError("the objective's loss does not depend on logprobs, its first argument: it has no gradient")
    return [_examine(check, objective) for check in CHECKS]


def _examine(check: Check, objective: Subject) -> Result:
    """Runs one check; an exception of the function is a fault, since the plain batch went through."""
    first = None
    try:
        for comparison in check.compare(objective):
            first = first or comparison
            if not comparison.holds:
                return Result(check=check, comparison=comparison)
    except Exception as error:
        return Result(check=check, comparison=None, error=f"raised {_describe(error)}")
    return Result(check=check, comparison=first)


def _describe(error: Exception) -> str:
    """Returns the kind of an exception and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
