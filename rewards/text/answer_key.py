"""A comparable form of the final answer in a response."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.text.answer_text import after_thinking, final_answer, last_block, normalised
from rewards.text.patterns import Pattern
from rewards.text.typography import plain_typography, without_markup

_NUMBER = Pattern(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_FRACTION = Pattern(r"([+-]?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")


def answer_key(text: str) -> str:
    r"""Returns the final answer of a response in a form that is equal for equal answers; it calls no verifier.

    The answer is `rewards.text.answer_text.final_answer`. Where that has neither letter nor digit, as at the end of JSON, it
    is the last fenced block, or all of the text. It is `""` where there is no answer, as after a thought that has no end.

    These differences vanish: the script of digits; case; white space; full-width forms; markup as in `$17$`, `\text{17}` and
    `**17**`; the stop of `17.`. All before the last equals sign of `3+5+9=17` vanishes too, unless there are several answers. So do
    the forms `1,000`, `1000.0`, `\frac{1}{2}`, `1/2`, `0.50` of a number. Arithmetic is left alone: `2^3` is not `8`.
    """
    found = final_answer(text)
    if not re.search(r"\w", found):
        found = last_block(after_thinking(text))
    found = without_markup(plain_typography(found)).replace(r"\$", "").replace("`", "")
    found = normalised(found).rstrip(". ")
    if not re.search(r"[,;](?!\d{3}\b)|[<>!:]=", found):
        found = found.rsplit("=", 1)[-1].strip()
    return _as_number(found) or found


def _as_number(text: str) -> str | None:
    """Returns a number in lowest terms; `None` for any other text."""
    text = text.replace(" ", "")
    if (parts := _FRACTION.fullmatch(text)) is not None:
        sign, *digits = parts.groups()
        over, under = (int(each) for each in digits if each is not None)
        return str(Fraction(over, under) * (-1 if sign == "-" else 1)) if under else None
    if len(text) < 100 and re.search(r"\d", text) and _NUMBER.fullmatch(text):
        return str(Fraction(text.replace(",", "")))
    return None
