"""A number, within a tolerance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from numbers import Real

from rewards.text.answer_text import answer_part, final_answer, normalised, plain_digits
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import Score, Verifier
from rewards.verifiers.count import BOUND
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

_PLAIN = (  # replaces LaTeX and typography by plain characters
    (Pattern(r"(?<=\d)(?:\\[,:; !]|\{,\}|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))"), ","),
    (Pattern(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r" \1 "),
    (Pattern(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (Pattern(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (Pattern(r"\^?\{?\\circ\b\}?"), "°"),
    (Pattern(r"\\(?:[,:;! ()\[\]]|(?:quad|approx)(?![a-zA-Z]))|\*\*|~"), " "),
    (Pattern(r"\\%|％|\bper\s?cent\b", re.IGNORECASE), "%"),
    (Pattern(r"([⁻⁰¹²³⁴-⁹]+)"), r"^\1"),
    (Pattern(r"[−–](?=\s*[\d.])"), "-"),
)
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_CURRENCY = Pattern(r"\\?[$€£¥₹]")
_DECIMAL = r"(?:[1-9]\d{0,2}(?:,\d{3}){1,12}(?!\d)|\d{1,40})(?:\.\d{1,40})?|\.\d{1,40}"
_POWER = r"10\s*\^\s*\{?\s*(?P<power%d>[-+]?\d{1,3})(?!\d)\s*\}?"
_NUMBER = Pattern(
    rf"(?<![a-z_^\d])(?P<sign>[-+]\s*)?(?:{_POWER % 1}"
    rf"|(?P<value>{_DECIMAL})(?:e(?P<exponent>[-+]?\d{{1,3}})(?!\d)|\s*[×x*]\s*{_POWER % 2}|\s*/\s*(?P<below>{_DECIMAL}))?)"
)
_NOT_BEFORE = Pattern(rf"(?:{BOUND}|[\^×/÷+]\s*)$")
_NOT_AFTER = Pattern(r"\s*(?:[\^×/÷+=π√]|[x*]\s*\d|e[-+]?\d|or\s+(?:more|less)\b)")
_SCALE = Pattern(r"\s*(%|thousand|million|billion|trillion)s?(?![a-z])")
_SCALES = {"%": Fraction(1, 100)} | {
    word: Fraction(1000**power) for power, word in enumerate(("thousand", "million", "billion", "trillion"), 1)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Number:
    value: Fraction
    """The number as written: 45 for 45 %."""
    scale: Fraction
    """The factor of `%` or `million` after it; else 1."""
    currency: str
    """A sign such as `$`, or ""."""
    unit: str
    """All text after the number, or ""."""


@with_options
def numeric(*, tolerance: float = 0.0, relative: float = 0.0) -> Verifier:
    r"""Makes a verifier of a number: `numeric(relative=0.05)` is ChartQA's relaxed accuracy (arXiv 2203.10244).

    The final answer must hold one number and no other, in digits of any script: with decimals, thousands separators (`1,204.5`),
    an exponent (`3e5`, `3\times10^{5}`), or as a fraction (`3/4`). `more than 5`, `2^5` and NaN are no numbers. The text after
    the number is its unit. Unit and currency must be those of the reference, where both sides have one. `45%` is 0.45, and not
    45; `5.2 million` is 5200000, and not 5.2.

    `prompt.answer` is a number, or a text in one of these forms.

    Args:
        tolerance: Largest error, in the reference's unit.
        relative: Largest error as a share of the reference; the larger of both tolerances counts.

    Returns:
        The verifier: 1.0 or 0.0; a `Score` with an error where the answer holds no number, or several.

    Raises:
        ValueError: A tolerance is negative or not finite, or `relative` is not below 1.
    """
    if not (tolerance >= 0 and isfinite(tolerance) and 0 <= relative < 1):
        given = f"tolerance={tolerance}, relative={relative}"
        raise ValueError(f"numeric needs tolerance >= 0 and relative from 0 to below 1, got {given}")
    off, share = Fraction(str(tolerance)), Fraction(str(relative))  # as fractions, 1.3 is no further from 1 than 0.3

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        is_text_or_number = isinstance(prompt.answer, str | Real) and not isinstance(prompt.answer, bool)
        wanted = _one_number(str(prompt.answer)) if is_text_or_number else None
        if wanted is None:
            return unreadable("numeric", prompt, "give a number, or a text with one number in it")
        found = _one_number(final_answer(answer_part(completion)))
        if found is None or not _is_same_unit(found, wanted):
            return 0.0
        rounding = Fraction(1, 10**14) if isinstance(prompt.answer, float) else 0  # the float error of 0.1 + 0.2
        allowed = max(off, max(share, rounding) * abs(wanted.value))
        return float(abs(found.value * found.scale / wanted.scale - wanted.value) <= allowed)

    return verify


def _is_same_unit(found: _Number, wanted: _Number) -> bool:
    """Returns whether units and currencies agree, where both sides have one; text after the unit is ignored."""
    if found.currency and wanted.currency and found.currency != wanted.currency:
        return False
    same = re.match(re.escape(wanted.unit) + r"(?![\w^/*·°%])", found.unit)
    return same is not None or not found.unit or not wanted.unit


def _one_number(text: str) -> _Number | None:
    """Returns the only number in a text; `None` if there is none, a second one, or unfinished arithmetic."""
    text = plain_digits(text)
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    text = normalised(text.translate(_SUPERSCRIPTS))
    if text.replace(r"\$", "").count("$") % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text)  # dollars around a formula, no currency
    currencies = {symbol.lstrip("\\") for symbol in _CURRENCY.findall(text)}
    text = _CURRENCY.sub("", text).strip(" *_`'\"")
    matches = list(_NUMBER.finditer(text))
    if len(matches) != 1 or len(currencies) > 1 or "\\" in text:
        return None
    match = matches[0]
    before, after = text[: match.start()], text[match.end() :]
    value = _value(match)
    if value is None or _NOT_BEFORE.search(before) or _NOT_AFTER.match(after):
        return None
    scale = _SCALE.match(after)
    return _Number(
        value=value,
        scale=_SCALES[scale[1]] if scale else Fraction(1),
        currency="".join(currencies),
        unit=(after[scale.end() :] if scale and scale[1] != "%" else after).strip(" .,;:!?()[]{}*_`'\""),
    )


def _value(match: re.Match[str]) -> Fraction | None:
    below = Fraction((match["below"] or "1").replace(",", ""))
    power = match["power1"] or match["exponent"] or match["power2"] or "0"
    if not below:
        return None
    value = Fraction((match["value"] or "1").replace(",", "")) * Fraction(10) ** int(power) / below
    return -value if (match["sign"] or "").startswith("-") else value
