"""Units behind a number: `km/h`, `square metres`, `小时`, and nouns such as `apples`, of which only a common word is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from rewards.text.patterns import Pattern

_TABLE = """
length  mm 1/1000 millimeter millimetre | cm 1/100 centimeter centimetre 厘米 | dm 1/10 decimeter decimetre 分米
length  m 1 meter metre 米
length  km 1000 kilometer kilometre 千米 公里 | in 127/5000 inch inches | ft 381/1250 foot feet | yd 1143/1250 yard
length  mi 201168/125 mile 英里
time    ms 1/1000 millisecond | s 1 sec second 秒 秒钟 | min 60 minute 分钟 | h 3600 hr hour 小时 | day 86400 天
time    week 604800 周 星期
months  month 1 月 个月 | year 12 yr 年
mass    mg 1/1000 milligram 毫克 | g 1 gram gramme 克 | kg 1000 kilogram 千克 公斤 | tonne 1000000 ton 吨
mass    lb 45359237/100000 lbs pound | oz 45359237/1600000 ounce
volume  ml 1/1000 milliliter millilitre 毫升 | l 1 liter litre 升 | gal 1 gallon
dollar  dollar 1 usd 美元 | cent 1/100 ¢
euro    euro 1 eur 欧元
pound   gbp 1
yuan    yuan 1 rmb cny 元 块 人民币 | 角 1/10 | 分 1/100
yen     yen 1 jpy 日元
rupee   rupee 1 inr rs
angle   degree 1 deg ° 度
radian  radian 1 rad 弧度
heat    celsius 1 °c ℃
heat-f  fahrenheit 1 °f
length/time mph 1397/3125 | kmh 5/18 kmph kph
am      am 1 a.m a.m.
pm      pm 1 p.m p.m.
"""
_CASED = {name: f"si {name}" for name in ("N", "kN", "J", "kJ", "W", "kW", "V", "K", "Pa", "kPa", "Hz", "mol", "Ω")}
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yuan", "₹": "rupee"}
_POWER = Pattern(r"\s*(?:\^\s*\{?\s*([23])\s*\}?|(?<=[a-zA-Z])([23]))$")
_AREA = Pattern(r"^(?:(square|sq\.?|平方)|(cubic|cu\.?|立方))\s*", re.IGNORECASE)
_PLAIN = Pattern(r"[A-Za-z°℃¢%\u4e00-\u9fff'.\- ]+")
_WORD = Pattern(r"[a-z°¢]+|[\u4e00-\u9fff]+")
_NO_UNIT = Pattern(
    r"(?:or|and|not|never|to|maybe|perhaps|except|than|least|most|below|above|if|(?:b|m|tr)illions?|thousands?|hundreds?|is|are|was|were|be|isn|wrong|incorrect|但|或|和|不)(?![a-z])",
    re.IGNORECASE,
)
_ANY = frozenset({"unit", "个", "sq unit", "square unit"})


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit with its kind and its factor to the kind's first unit; a noun has no kind."""

    kind: str
    factor: Fraction = Fraction(1)
    words: frozenset[str] = frozenset()

    def agrees(self, other: Unit) -> bool:
        """Returns whether both are of one kind, or are nouns with a word in common."""
        if self.kind or other.kind:
            return self.kind == other.kind
        return bool(self.words & other.words) or not self.words or not other.words


@cache
def _units() -> dict[str, Unit]:
    units = {}
    for line in _TABLE.strip().splitlines():
        kind, _, rest = line.partition(" ")
        for entry in rest.split("|"):
            name, factor, *others = entry.split()
            for each in (name, *others):
                units[each] = Unit(kind, Fraction(factor))
    return units


def currency(sign: str) -> Unit:
    """Returns the unit of a sign such as `$`."""
    return _units()[_CURRENCIES[sign]]


def read_unit(text: str) -> Unit | None:
    """Returns the unit that a whole text names; a noun of up to five words if it is no known one; `None` if it is no unit."""
    text = text.strip(" .,;:")
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    if text in ("°", r"^\circ", r"^{\circ}"):
        return _units()["°"]
    known = _known(text)
    if known is not None:
        return known
    words = _WORD.findall(text.lower())
    if not _PLAIN.fullmatch(text) or len(words) > 5 or any(_NO_UNIT.fullmatch(word) for word in words):
        return None
    if any(character in text for character in "不或和但非") or not any(
        len(word) > 1 or not word.isascii() for word in words
    ):
        return None
    stems = {stem(word) for word in words}
    return Unit("", words=frozenset() if stems <= _ANY else frozenset(stems - {"of", "the", "a", "个", "in", "total"}))


def stem(word: str) -> str:
    """Returns a word without its plural's ending; Chinese without the measure word `个`."""
    if word.startswith("个") and len(word) > 1:
        return word[1:]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("es") and word[:-2].endswith(("s", "x", "ch", "sh")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and len(word) > 2 and not word.endswith("ss") else word


def is_known(word: str) -> bool:
    """Returns whether a text names a unit of the table."""
    return _known(word) is not None


def _known(text: str) -> Unit | None:
    text = text.strip()
    for separator in ("/", " per ", "每"):
        above, found, below = text.partition(separator)
        if found:
            first, second = _one(above), _one(below)
            if first is None or second is None:
                return None
            return Unit(f"{first.kind}/{second.kind}", first.factor / second.factor)
    return _one(text)


def _one(text: str) -> Unit | None:
    text, power = text.strip(), 1
    if (area := _AREA.match(text)) is not None:
        text, power = text[area.end() :], 2 if area[1] else 3
    elif (raised := _POWER.search(text)) is not None:
        text, power = text[: raised.start()], int(raised[1] or raised[2])
    if text in _CASED:
        return Unit(_CASED[text])
    units, word = _units(), text.strip(" .").replace(r"^\circ", "°").lower()
    unit = units.get(word) or units.get(stem(word)) or units.get(word.replace(" ", ""))
    if unit is None:
        return None
    if unit.kind == "length" and text.strip() == "M":
        return None
    return Unit(unit.kind if power == 1 else f"{unit.kind}^{power}", unit.factor**power)
