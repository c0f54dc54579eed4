"""A number, within a tolerance."""

from __future__ import annotations

import math
import re
from numbers import Real

from rewards.answer_text import final_answer, plain_digits
from rewards.options import with_options
from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt

_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-−+]?)\s?[$€£¥]?\s?(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})(?![.,]?\d)"
    r"(?:\s*(?:[eE]|(?:×|x|\\times|\*)\s*10\s*\^?)\s*\{?(?P<power>[-−+]?\d{1,3})\}?)?(?:\s*/\s*(?P<below>\d{1,40}(?:\.\d{1,40})?))?"
    r"\s?(?P<unit>\\?%|percent\b)?"
)


@with_options
def numeric(*, tolerance: float = 0.0, relative: float = 0.0) -> Verifier:
    """Makes a verifier of a number: `numeric(relative=0.05)` is ChartQA's relaxed accuracy (arXiv 2203.10244).

    The final answer must hold one number and no other: with decimals, thousands separators, an exponent (`3e5`, `3 × 10^5`), as a
    fraction, a percentage, with a currency or a unit around it, in digits of any script. A percentage is a hundredth if the
    reference is none (`45%` is 0.45 and `45%`, but not 45).

    `prompt.answer` is a number, or a text with one.

    Args:
        tolerance: How far off the number may be.
        relative: How far off it may be as a share of the reference; the larger of the two counts.

    Returns:
        The verifier: 1.0 or 0.0; a `Score` with an error where the answer holds no number.

    Raises:
        ValueError: A tolerance is negative, or `relative` not below 1.
    """
    if not tolerance >= 0 or not 0 <= relative < 1:
        given = f"tolerance={tolerance}, relative={relative}"
        raise ValueError(f"numeric needs tolerance >= 0 and relative from 0 to below 1, got {given}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        wanted = _one_number(str(prompt.answer)) if isinstance(prompt.answer, str | Real) else None
        if wanted is None:
            told = f"numeric cannot read the answer {prompt.answer!r} of prompt {prompt.id!r}"
            return Score(reward=0.0, error=f"{told}; give a number")
        found = _one_number(final_answer(completion.text))
        # The last digits of a binary fraction are nobody's mistake.
        allowed = max(tolerance, relative * abs(wanted)) + 1e-9 * abs(wanted) + 1e-12
        return float(found is not None and abs(found - wanted) <= allowed)

    return verify


def _one_number(text: str) -> float | None:
    """Returns the only number in a text; `None` where there are none, several, or one that floats cannot hold."""
    values = {_value(match) for match in _NUMBER.finditer(plain_digits(text))}
    value = values.pop() if len(values) == 1 else math.nan
    return value if math.isfinite(value) else None


def _value(match: re.Match[str]) -> float:
    value = float(f"{match['value'].replace(',', '')}e{(match['power'] or '0').replace('−', '-')}")
    if below := match["below"]:
        value = value / float(below) if float(below) else math.nan
    return (-value if match["sign"] in ("-", "−") else value) / (100 if match["unit"] else 1)
