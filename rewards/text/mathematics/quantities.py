r"""Quantities of mathematics: those of ordinary texts, numbers with a base (`1011_2`), and decimals that repeat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.text.numbers.amounts import Quantity, convert, plain_quantities, whole_quantity
from rewards.text.patterns import Pattern

PRECISION = Fraction(1, 10**12)
"""Largest relative difference of a decimal number, such as a float of the dataset, and an equal one."""
_REPEATING = Pattern(r"([-+]?)(\d{1,100}\.\d{0,100})(?:\\overline\s*\{\s*(\d{1,100})\s*\}|\\dot\s*\{?\s*(\d)\s*\}?)")
_BASED = Pattern(r"([-+]?)\s*\(?\s*([0-9A-F]{1,100})\s*\)?\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_ORDINAL = Pattern(r"(?<=\d)(?:st|nd|rd|th)(?![a-z])")
_LIST = Pattern(r"^(?![-+]?0,\d).*\d,(?!\d{3}(?!\d))", re.DOTALL)  # `1,5` are two numbers, `0,5` is one
_PRODUCT = Pattern(
    r"[-+(]?[\d.,/ ]{0,300}\d(?![kKMBT])[A-Za-z](?:\s.*)?"
)  # `5m` and `5g t^2` as `5x`; but `5k` is 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Based(Quantity):
    """A number with a base."""

    base: int
    digits: str


def read_quantity(text: str) -> Quantity | None:
    """Returns the quantity that a whole text is; `None` if there is anything else in it, or unfinished arithmetic."""
    text = _ORDINAL.sub("", _stripped(text))
    if repeating := _REPEATING.fullmatch(text):
        sign, front, line, dot = repeating.groups()
        return Quantity(value=(-1 if sign == "-" else 1) * _repeating(front, line or dot))
    if based := _BASED.fullmatch(text):
        return _in_base(based[2], int(based[3]), -1 if based[1] == "-" else 1)
    if "_" in text or _LIST.search(text):
        return None
    text = plain_quantities(text)
    quantity = None if _PRODUCT.fullmatch(text) else whole_quantity(text)
    has_digits = any(map(str.isdecimal, text))
    return quantity if quantity is None or has_digits or not quantity.noun else None  # `two-dimensional` is no number


def is_same_quantity(wanted: Quantity, found: Quantity) -> bool:
    """Returns whether a response's quantity is that of a reference: units agree or are absent on a side, and so do bases."""
    if isinstance(found, Based):  # that 1101_2 is 13 in base ten may be the question, so only base ten has other forms
        base = wanted.base if isinstance(wanted, Based) else 10
        return wanted.value == found.value and (found.base == base or (base == 10 and isinstance(wanted, Based)))
    if isinstance(wanted, Based):
        return str(found.value) == wanted.digits
    value = convert(found, wanted)
    return value is not None and _is_close(wanted.value, value, is_decimal=wanted.is_decimal or found.is_decimal)


def _is_close(wanted: Fraction, found: Fraction, *, is_decimal: bool) -> bool:
    """Returns whether two numbers are equal; of decimal ones, whether they agree in 12 digits."""
    return wanted == found or (is_decimal and abs(wanted - found) <= PRECISION * abs(wanted))


def _stripped(text: str) -> str:
    """Returns a text without dollars and one pair of brackets around all of it, and without a full stop."""
    text = text.strip().rstrip(".,;:").strip()
    if text[:1] == "$" and text[-1:] == "$":
        text = text.strip("$ ")
    while (text[:1], text[-1:]) in (("(", ")"), ("{", "}")) and not {*"(),;", text[0]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text


def _in_base(digits: str, base: int, sign: int) -> Based | None:
    try:
        return Based(value=Fraction(sign * int(digits, base)), base=base, digits=digits) if 2 <= base <= 16 else None
    except ValueError:  # a digit beyond the base
        return None


def _repeating(front: str, period: str) -> Fraction:
    places = len(front.partition(".")[2])
    return Fraction(front + "0") + Fraction(int(period), (10 ** len(period) - 1) * 10**places)
