r"""Numbers with units, read exactly and whole: `3 1/2 cups`, `2.5 million`, `\frac{5}{8}`, `1011_2`, `6 feet 2 inches`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.text.mathematics.units import Unit, currency, is_known, read_unit
from rewards.text.patterns import Pattern

PRECISION = Fraction(1, 10**12)
"""Largest relative difference of a decimal number, such as a float of the dataset, and an equal one."""
_LARGEST_EXPONENT = 5000
_DECIMAL = r"(?:[1-9]\d{0,2}(?:,\d{3}){1,60}(?![\d,])|[1-9]\d{0,2}(?: \d{3}){1,60}(?! ?\d)|\d{1,310})(?:\.\d{1,300})?|\.\d{1,300}"
_POWER_OF_TEN = r"10\s*\^\s*(?:\{\s*(?P<power%d>[-+]?\d{1,6})\s*\}|(?P<bare%d>[-+]?\d{1,6})(?!\d))"
_NUMBER = Pattern(
    r"(?P<sign>[-+]?)\s*(?:"
    r"(?P<whole>\d{1,20})\s*(?:\\frac\s*\{\s*(?P<up1>\d{1,20})\s*\}\s*\{\s*(?P<low1>\d{1,20})\s*\}"
    r"|\s(?P<up2>\d{1,20})\s*/\s*(?P<low2>\d{1,20}))"
    rf"|\\frac\s*\{{\s*(?P<minus>-?)\s*(?P<up3>{_DECIMAL})\s*\}}\s*\{{\s*(?P<low3>{_DECIMAL})\s*\}}"
    rf"|\(?(?P<up4>{_DECIMAL})\)?\s*/\s*\(?(?P<low4>{_DECIMAL})\)?(?!\s*[/(])"
    r"|(?P<front>\d{1,100}\.\d{0,100})(?:\\overline\s*\{\s*(?P<line>\d{1,100})\s*\}|\\dot\s*\{?\s*(?P<dot>\d)\s*\}?)"
    r"|\(?\s*(?P<digits>[0-9A-F]{1,100})\s*\)?\s*_\s*(?:\{\s*(?P<base>\d{1,2})\s*\}|(?P<base2>\d{1,2})(?!\d))"
    rf"|{_POWER_OF_TEN % (1, 1)}"
    rf"|(?P<value>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d{{1,6}})(?!\d)|\s*(?:\\times|\\cdot|\*)\s*{_POWER_OF_TEN % (2, 2)})?"
    r")(?![\d_^!]|\.\d|\s*\{)"
)
_CURRENCY = Pattern(r"\\?([$€£¥₹])\s*")
_PERCENT = Pattern(r"\s*(?:\\?%|(?:percent|percentage|pct|per cent|percentage points?)(?![a-z]))", re.IGNORECASE)
_PER_MILLE = Pattern(r"\s*(?:‰|per mille?(?![a-z]))", re.IGNORECASE)
_SCALE = Pattern(
    r"\s*(?:(hundred|thousand|million|billion|trillion)s?(?![a-z])|(十|百|千)?(万|亿)|(百|千)(?![克米瓦]))"
    r"|(k|K|M|B|bn|mn|Mn|mln|T)(?![A-Za-z/^])"
)
_SCALES = {
    **{"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"十": 10, "百": 100, "千": 10**3, "万": 10**4, "亿": 10**8},
    **{
        "k": 10**3,
        "K": 10**3,
        "M": 10**6,
        "B": 10**9,
        "bn": 10**9,
        "mn": 10**6,
        "Mn": 10**6,
        "mln": 10**6,
        "T": 10**12,
    },
}
_ORDINAL = Pattern(r"(?:st|nd|rd|th)(?![a-z])", re.IGNORECASE)
_DECIMAL_COMMA = Pattern(r"([-+]?0),(\d{1,100})")
_COMPOUND = Pattern(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z\u4e00-\u9fff'\"]{1,20}\.?)\s*(?:,|and\b|又)?")
_FEET_AND_INCHES = {"'": "ft", '"': "in"}
_ABOUT = Pattern(r"(?:\\approx|\\sim(?:eq)?|≈|=|approximately|about|roughly|exactly|约)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number as written, with scale applied, and its unit."""

    value: Fraction
    unit: Unit | None = None
    is_percent: bool = False
    base: int | None = None
    digits: str = ""
    """The digits of a number with a base."""
    is_decimal: bool = False
    is_finished: bool = True
    """False for a fraction that is not in lowest form."""

    def equals(self, said: Quantity) -> bool:
        """Returns whether a response's quantity is this reference: the unit agrees or is absent on a side."""
        if self.base is not None or said.base is not None:
            return self._equals_in_base(said)
        wanted, found = self.value, said.value
        if self.unit is not None and said.unit is not None:
            if not self.unit.agrees(said.unit):
                return False
            wanted, found = wanted * self.unit.factor, found * said.unit.factor
        decimal = self.is_decimal or said.is_decimal
        if is_close(wanted, found, decimal=decimal):
            return True
        if self.is_percent and not said.is_percent:
            return is_close(wanted / 100, found, decimal=decimal)
        if said.is_percent and not self.is_percent and wanted.denominator > 1:
            return is_close(wanted, found / 100, decimal=decimal)
        return False

    def _equals_in_base(self, said: Quantity) -> bool:
        if self.base is not None and said.base is None:
            return said.value.denominator == 1 and str(said.value) == self.digits
        return (
            self.value == said.value
            and (self.base or 10) in (said.base or 10, 10)
            and (self.base is not None or said.base == 10)
        )


def is_close(wanted: Fraction, found: Fraction, *, decimal: bool) -> bool:
    """Returns whether two numbers are equal; of decimal ones, whether they agree in 12 digits."""
    return wanted == found or (decimal and abs(wanted - found) <= PRECISION * abs(wanted))


def read_quantity(text: str) -> Quantity | None:
    """Returns the quantity that a whole text is; `None` if there is anything else in it, or unfinished arithmetic."""
    text = text.strip()
    about = _ABOUT.match(text)
    text = _stripped(text[about.end() :] if about else text)
    if (comma := _DECIMAL_COMMA.fullmatch(text)) is not None:
        text = f"{comma[1]}.{comma[2]}"
    sign = "-" if text.startswith("-") and _CURRENCY.match(text, 1) else ""
    money = _CURRENCY.match(text, len(sign))
    number = _NUMBER.match(sign + text[money.end() :] if money else text)
    if number is None:
        return None
    quantity = _number(number)
    rest = number.string[number.end() :]
    if quantity is None:
        return None
    quantity = replace(quantity, unit=currency(money[1])) if money else quantity
    return _with_unit(quantity, rest) or (None if money else _compound(text))


def _stripped(text: str) -> str:
    """Returns a text without dollars and one pair of brackets around all of it, and without a full stop."""
    text = text.strip().rstrip(".,;:").strip()
    if text[:1] == "$" and text[-1:] == "$":
        text = text.strip("$ ")
    while (text[:1], text[-1:]) in (("(", ")"), ("{", "}")) and not {*"(),;", text[0]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text


def _number(match: re.Match[str]) -> Quantity | None:
    parts = match.groupdict()

    def decimal(name: str) -> Fraction:
        return Fraction((parts[name] or "0").replace(",", "").replace(" ", ""))

    sign = -1 if parts["sign"] == "-" else 1
    if parts["digits"] is not None:
        return _in_base(parts, sign)
    if parts["front"] is not None:
        return Quantity(value=sign * _repeating(parts["front"], parts["line"] or parts["dot"]))
    if (parts["up1"] or parts["up2"]) is not None:
        above, below = decimal("up1" if parts["up1"] else "up2"), decimal("low1" if parts["low1"] else "low2")
        if not below:
            return None
        return Quantity(value=sign * (decimal("whole") + above / below), is_finished=_is_lowest(above, below))
    if (parts["up3"] or parts["up4"]) is not None:
        above, below = decimal("up3" if parts["up3"] else "up4"), decimal("low3" if parts["low3"] else "low4")
        if not below:
            return None
        sign = -sign if parts["minus"] else sign
        return Quantity(value=sign * above / below, is_finished=_is_lowest(above, below))
    power = parts["power1"] or parts["bare1"] or parts["exponent"] or parts["power2"] or parts["bare2"] or "0"
    if abs(int(power)) > _LARGEST_EXPONENT:
        return None
    value = decimal("value") if parts["value"] else Fraction(1)
    return Quantity(value=sign * value * Fraction(10) ** int(power), is_decimal="." in (parts["value"] or ""))


def _is_lowest(above: Fraction, below: Fraction) -> bool:
    is_whole = above.denominator == below.denominator == 1
    return is_whole and below > 1 and Fraction(above, below).denominator == below


def _in_base(parts: dict[str, str | None], sign: int) -> Quantity | None:
    base, digits = int(parts["base"] or parts["base2"] or 0), parts["digits"] or ""
    try:
        return Quantity(value=Fraction(sign * int(digits, base)), base=base, digits=digits) if 2 <= base <= 16 else None
    except ValueError:  # a digit beyond the base
        return None


def _repeating(front: str, period: str | None) -> Fraction:
    period = period or "0"
    places = len(front.partition(".")[2])
    return Fraction(front + "0") + Fraction(int(period), (10 ** len(period) - 1) * 10**places)


def _with_unit(quantity: Quantity, rest: str) -> Quantity | None:
    """Returns the quantity with what stands behind its number; `None` if that is no percent sign, scale or unit."""
    if (percent := _PERCENT.match(rest)) is not None:
        quantity, rest = replace(quantity, is_percent=True), rest[percent.end() :]
    elif (per_mille := _PER_MILLE.match(rest)) is not None:
        quantity, rest = replace(quantity, value=quantity.value / 1000), rest[per_mille.end() :]
    elif (scale := _SCALE.match(rest)) is not None:
        factor = 1
        for word in scale.groups():
            factor *= _SCALES[word] if word else 1
        quantity, rest = replace(quantity, value=quantity.value * factor), rest[scale.end() :]
    elif (ordinal := _ORDINAL.match(rest)) is not None:
        rest = rest[ordinal.end() :]
    behind, rest = rest, rest.strip().strip("$").strip()
    if not rest.strip(" .,;:"):
        return quantity
    if (money := _CURRENCY.fullmatch(rest)) is not None:
        return replace(quantity, unit=currency(money[1])) if quantity.unit is None else None
    unit = read_unit(rest)
    attached = rest[0].isascii() and rest[0].isalpha() and not behind[:1].isspace()
    if unit is None or (attached and (not unit.kind or len(rest) == 1)):  # `5x` and `5m` are products
        return None
    if quantity.unit is not None and unit.kind:
        return quantity if quantity.unit.agrees(unit) else None
    return quantity if quantity.unit is not None else replace(quantity, unit=unit)


def _compound(text: str) -> Quantity | None:
    """Returns the sum of parts with units of one kind: `3 hours 20 minutes`."""
    place, total, kinds = 0, Fraction(0), []
    while place < len(text.rstrip(" .")):
        part = _COMPOUND.match(text, place)
        name = _FEET_AND_INCHES.get(part[2], part[2]) if part else ""
        if part is None or not is_known(name):
            return None
        unit = read_unit(name)
        if unit is None or "/" in unit.kind:
            return None
        total, place = total + Fraction(part[1]) * unit.factor, part.end()
        kinds.append(unit.kind)
    return Quantity(value=total, unit=Unit(kinds[0])) if len(kinds) > 1 and len(set(kinds)) == 1 else None
