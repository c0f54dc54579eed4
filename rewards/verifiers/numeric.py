"""A number, within a tolerance."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import isfinite
from numbers import Real

from rewards.text.answer_text import answer_part, final_answer
from rewards.text.numbers.amounts import Quantity, convert, plain_quantities, read_quantity, whole_quantity
from rewards.text.numbers.claims import (
    ABOUT,
    BOUND,
    BOUND_BEHIND,
    DOUBT,
    NEGATION,
    REJECTED_BEHIND,
    WORK_BEFORE,
    WORK_BEHIND,
    result_of,
)
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

_LEADS_UP = Pattern(  # a name, as in `Boeing 747` or `Top 10`, does not
    rf"(?:^|[=:≈~(\[*]|##|\b(?:{ABOUT}|is|was|are|were|be|been|being|as|it['’]s|that['’]s|there['’]s|equals?|equal\s+to|of|to|at|in|by|rose|fell|grew|becomes?|became|remains?|remained|ans\.?|has|have|had"
    r"|holds?|shows?|gives?|gave|gets?|got|costs?|takes?|took|weighs?|measures?|travell?s?|counte?d?|counts|reads?|reached|reaches"
    r"|totals?|needs?|needed|sold|sells|pays?|paid|earns?|earned|makes?|made|contains?|includes?|see|found|find|say|so|then|answer"
    r"|result|value|year|a|an|the|total)|是|为|為|有|共|要|数量|总数|约|約|得|等于|到|了|大概|大约)[\s,]*$",
    re.IGNORECASE,
)
_NO_BEFORE = Pattern(
    rf"{NEGATION}|{DOUBT}|{BOUND}\s*,?\s*(?:{ABOUT}\s*)?$|\bor\b|\d|第\s*$|%\s+of\s+$|/\s*$|[A-Za-z]$|{WORK_BEFORE}",
    re.IGNORECASE,
)
_NO_BEHIND = Pattern(
    rf"^(?:{BOUND_BEHIND}|{WORK_BEHIND}|\s*(?:[×÷*/=^√π:-]|x\s|to\b|point\b|o\s?['’]?\s?clock\b|(?:[点月号楼折届]|分之)|[ap]\.?m\b|bc\b|ad\b"
    r"|(?:half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|ninths?|tenths?|hundredths?|thousandths?)\b))"
    rf"|{NEGATION}|{REJECTED_BEHIND}|[\d±√^\\<>≤≥]|\bor\b",
    re.IGNORECASE,
)
_IN_BRACKETS = Pattern(r"\s*\(([^()]{1,60})\)\W*")
_EQUALS = Pattern(r"\s*[=≈]\s*")
_STATES = Pattern(r"\s*(?:[=≈]|\b(?:is|are|was|were|equals?|gives|has|have|had)\b)\s*", re.IGNORECASE)
_NO_SUBJECT = Pattern(rf"{NEGATION}|\b(?:or|if|either)\b|[,;:<>≤≥±]", re.IGNORECASE)
_WORK = Pattern(
    r"(?=[^,;]*[\w)}%°]\s*(?:[-+*/×÷^]|\\div\b)\s*[\w(\\{$]|.*\\sqrt\b)(?!.*\b(?:and|or)\b)(?:[^,;]|,(?=\d))+",
    re.IGNORECASE,
)
_SEASON = Pattern(r"(?<![\d/.])(?:19|20)\d\d/\d\d(?![\d/])")  # 2015/16
_AGE = Pattern(r"\b\d0s\b")  # `20s` as a reference are an age rather than seconds


@with_options
def numeric(*, tolerance: float = 0.0, relative: float = 0.0) -> Verifier:
    r"""Makes a verifier of a number: `numeric(relative=0.05)` is ChartQA's relaxed accuracy (arXiv 2203.10244).

    The final answer must state one number: in digits of any script, with decimals, thousands separators (`1,204.5`,
    `1 204 567`), an exponent (`3e5`, `3\times10^{5}`), as a fraction (`3/4`), a mixed number (`5½`) or in words (`five`, 五).
    A reason before it (`26/5 = 5.2`, `5.19, so 5.2`) and a number that it rejects (`5.2, not 5.3`) do not count. A number in a
    name (`Boeing 747`, `Top 10`), an ordinal, a bound (`more than 5`), a range, `2^5` and NaN are no numbers. Nor is one in
    doubt (`maybe 5`, `5?`), one that is rejected (`5 is too many`), or a part of a calculation (`twice 5`, `5 squared`).

    Scale words are applied: `5.2 million`, `5.2M` and `520万` are 5200000, and not 5.2. Units and currencies are converted,
    so `5 km` is `5000 m`; a side without a unit has that of the other side. `3 hours 20 minutes` is `200 minutes`. Of two nouns,
    one may say more (`5 cars`, `5 red cars`).

    A percentage is compared with a bare number as percent where the number is above 1, else as a share: `45%` is right for 45
    and for 0.45, `0.5%` is wrong for 0.5.

    `prompt.answer` is a number, or a text that is nothing but a number in one of these forms, with its unit or the noun that is
    counted. Other texts with a number in them are an error: `Q4 2019`, `at least 5`, `65+`.

    Args:
        tolerance: Largest error, in the reference's unit.
        relative: Largest error as a share of the reference; the larger of both tolerances counts. A bare whole number from 1500
            to 2099, or with a zero in front, is taken as a year or a label, of which no share is allowed.

    Returns:
        The verifier: 1.0 or 0.0, `UNREAD` where the response has no number; a `Score` with an error where the answer is none.

    Raises:
        ValueError: A tolerance is negative or not finite, or `relative` is not below 1.
    """
    if not (tolerance >= 0 and isfinite(tolerance) and 0 <= relative < 1):
        given = f"tolerance={tolerance}, relative={relative}"
        raise ValueError(f"numeric needs tolerance >= 0 and relative from 0 to below 1, got {given}")
    off, share = Fraction(str(tolerance)), Fraction(str(relative))  # as fractions, 1.3 is no further from 1 than 0.3

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        is_text_or_number = isinstance(prompt.answer, str | Real) and not isinstance(prompt.answer, bool)
        wanted = _reference(str(prompt.answer)) if is_text_or_number else None
        if wanted is None:
            return unreadable("numeric", prompt, "give a number, or a text that is one number with its unit")
        text = plain_quantities(final_answer(answer_part(completion)))
        found = _stated(text)
        value = convert(found, wanted) if found else None
        if value is None:
            return 0.0 if found or read_quantity(text) else UNREAD
        rounding = Fraction(1, 10**14) if isinstance(prompt.answer, float) else 0  # the float error of 0.1 + 0.2
        allowed = max(off, max(0 if wanted.is_label else share, rounding) * abs(wanted.value))
        return float(abs(value - wanted.value) <= allowed)

    return verify


@lru_cache(maxsize=1024)  # a group of completions has one reference
def _reference(text: str) -> Quantity | None:
    """Returns the quantity that a text is; `None` where it is another thing, has another number, or more words."""
    text = plain_quantities(text)
    if _SEASON.search(text) or _AGE.search(text):
        return None
    return whole_quantity(text[1:-1] if text[:1] + text[-1:] in ("[]", "{}") else text)


def _stated(text: str) -> Quantity | None:
    """Returns the one quantity that an answer states; `None` if there is none, a second one, a bound, or unfinished work."""
    reading = None if _SEASON.search(text) else read_quantity(_end_of_chain(result_of(text)))
    if reading is None or not _LEADS_UP.search(reading.before) or _NO_BEFORE.search(reading.before):
        return None
    after = reading.after
    again = _IN_BRACKETS.fullmatch(after)
    if again and (other := read_quantity(again[1])) and not other.before and not _NO_BEHIND.search(other.after):
        # `5 km (5000 m)` says the same twice.
        after = "" if convert(other.quantity, reading.quantity) == reading.quantity.value else after
    return None if _NO_BEHIND.search(after) else reading.quantity


def _end_of_chain(text: str) -> str:
    """Returns the last part of `x = 26/5 = 5.2`, where no second answer stands before it: `a = 3, b = 5` and `5 = 5` stay whole."""
    *parts, last = _EQUALS.split(text)
    with_numbers = [part for part in parts if any(map(str.isdecimal, part))]
    if with_numbers and all(map(_WORK.fullmatch, with_numbers)):
        return last
    # A number in the subject of the only statement is no second answer: `f(3) = 5`, `The bar of 2015 is 5`.
    subject, *rest = _STATES.split(text)
    is_one = len(rest) == 1 and any(map(str.isdecimal, subject)) and any(map(str.isalpha, subject))
    return rest[0] if is_one and not _NO_SUBJECT.search(subject) else text
