"""Units of measurement and money: what a unit measures, and its size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from rewards.text.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Unit:
    """A product of powers of base units, times a factor."""

    factor: Fraction = Fraction(1)
    powers: Mapping[str, int] = field(default_factory=dict)
    """Exponents by base unit, without zeros; kilometres per hour are {"m": 1, "s": -1}."""


_PREFIXES = {"k": 3, "M": 6, "G": 9, "T": 12, "d": -1, "c": -2, "m": -3, "μ": -6, "n": -9, "h": 2}
_PREFIX_NAMES = {
    "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "deci": -1, "centi": -2, "milli": -3, "micro": -6, "nano": -9, "hecto": 2
}  # fmt: skip

# prefixes that occur, size in base units, base units with their powers, symbols, names
_METRIC = """
kdcmμn|1|m|m|meter metre
kcmμn|1|g|g|gram gramme
mμn|1|s|s sec|second
hdcmμ|1/1000|m3|L l|liter litre
kMGm|1000|g m2 s-3|W|watt
kMm|1000|g m2 s-2|J|joule
kM|1000|g m s-2|N|newton
hkMG|1000|g m-1 s-2|Pa|pascal
kMmμ|1000|g m2 s-3 A-1|V|volt
kmμ|1|A|A amp|ampere amp
kMG|1|s-1|Hz|hertz
kMm|1000|g m2 s-3 A-2|Ω|ohm
k|1|cal|cal|calorie
kMGT|8|bit|B|byte
kMGT|1|bit|bit b|bit
kMG|1|eV|eV|electronvolt
mμk|1|mol|mol|mole
"""
# size, base units with their powers, names (an underscore is a blank)
_OTHERS = """
60|s|min minute 分钟 分
3600|s|h hr hour 小时 个小时
86400|s|day 天
604800|s|week wk 周 星期
1|month|month 个月
12|month|year yr 年 岁
120|month|decade
1200|month|century
1000000|g|t tonne ton 吨
45359237/100000|g|lb pound
45359237/1600000|g|oz ounce
254/10000|m|in inch inches "
3048/10000|m|ft foot feet '
9144/10000|m|yd yard
1609344/1000|m|mi mile 英里
1852|m|nmi
10000|m2|ha hectare
40468564224/10000000|m2|acre
1|m|米
1000|m|公里 千米
1/10|m|分米
1/100|m|厘米
1/1000|m|毫米
1|m2|平方米
1000000|m2|平方公里
1/10000|m2|平方厘米
1|m3|立方米
1/1000000|m3|立方厘米 cc
473176473/125000000000|m3|gal gallon
1/1000|m3|升
1/1000000|m3|毫升
1|g|克
1/1000|g|毫克
1000|g|千克 公斤
500|g|斤
1|s|秒 秒钟
1000/3600|m s-1|kph kmh kmph 公里每小时
1609344/3600000|m s-1|mph
3600000000|g m2 s-2|kWh
1|deg|° degree deg
1|celsius|°C C degree_celsius degrees_celsius degree_centigrade degrees_centigrade celsius deg_C 摄氏度
1|fahrenheit|°F F degree_fahrenheit degrees_fahrenheit fahrenheit deg_F 华氏度
1|deg celsius|度
1|kelvin|K kelvin
1|rad|rad radian 弧度
8000|bit|KB
8000000|bit s-1|MBps
1000|bit s-1|kbps
1000000|bit s-1|Mbps
1000000000|bit s-1|Gbps
1|USD|$ US$ USD US_dollar US_dollars dollar buck 美元
1/100|USD|¢ cent
1|EUR|€ EUR euro 欧元
1|GBP|£ GBP pound quid 英镑
1|JPY|¥ JPY yen 日元
1|CNY|¥ CNY RMB yuan 元 块钱 人民币
1/10|CNY|角
1/100|CNY|分
1|INR|₹ INR Rs rupee 卢比
1|KRW|₩ KRW won 韩元
1|CHF|CHF franc
"""
_SYMBOLS_THAT_ARE_WORDS = frozenset({"in", "C", "F", "A", "K", "t", "h", "won"})

_WORD = (
    r"(?:°\s?[CF]\b|deg(?:rees?)?\.?\s+(?:celsius|centigrade|fahrenheit|C|F)\b|US\s+dollars?|US\$|[$€£¥₹₩¢]|°|Ω"
    r"|公里每小时|平方(?:米|公里|厘米)|立方(?:米|厘米)|个?小时|分钟|个月|[分厘毫千]米|公[里斤]|[千毫]克|毫升|[美欧日韩]元|英[镑里]"
    r"|卢比|人民币|块钱|摄氏度|华氏度|弧度|星期|秒钟|[天周年岁吨米升克斤秒度元]|角(?!形)|分(?!之)|'(?=\s?\d{1,2}(?:\.\d{1,9})?\s?\")|\"(?!\w)"
    r"|[^\W\d_\u4e00-\u9fff]+)"
)
_FACTOR = Pattern(
    rf"(?P<link>\s*(?:/|[*·⋅]|per\b|每)|-(?=[a-z]{{3}})|)\s*(?:(?P<of>square|sq|cubic|cu)\b\.?\s*)?(?P<word>{_WORD})\.?"
    r"(?:\s*(?P<raised>squared|cubed)\b|\^\{?(?P<power>[-+]?\d)\}?(?!\d)|(?<=[a-zA-Z])(?P<plain>[23])(?![\d.]))?",
    re.IGNORECASE,
)


def unit_at(text: str, start: int = 0) -> tuple[tuple[Unit, ...], int]:
    """Returns the meanings of the unit that begins at a place of a text, and where it ends.

    `m/s^2`, `km per hour`, `square feet`, `$`, `平方米` are units. A word has several meanings where it names several units,
    such as `pounds`. There are none, and the unit ends where it began, if no unit is there.
    """
    meanings: tuple[Unit, ...] = ()
    while match := _FACTOR.match(text, start):
        link = match["link"].strip().casefold()
        known = _meanings(match["word"], text[match.end() :], is_next=bool(meanings) and not link)
        if link in ("/", "per", "每") and not known:
            known = (Unit(powers={singular(match["word"]): 1}),)
        if not known or len(meanings) > 8 or (not meanings and link in ("*", "·", "⋅", "-")):
            break
        power = int(match["power"] or match["plain"] or 1)
        for name in (match["of"] or "", match["raised"] or ""):
            power *= 2 if name.casefold().startswith("sq") else 3 if name.casefold().startswith("cu") else 1
        if link in ("/", "per", "每"):
            power = -power
        meanings = tuple(product(unit, other, power) for unit in meanings or (Unit(),) for other in known)
        start = match.end()
    return meanings, start


def is_unit(text: str) -> bool:
    """Returns whether a text names a unit, and nothing else."""
    units, end = unit_at(text)
    return bool(units) and end == len(text)


def singular(word: str) -> str:
    """Returns a noun in lower case and in the singular, as far as a rule of thumb can say."""
    word = word.casefold()
    for ending, single in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("ss", "ss")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + single
    return word[:-1] if word.endswith("s") and len(word) > 3 else word


def product(unit: Unit, other: Unit, power: int = 1) -> Unit:
    """Returns a unit times a power of another one."""
    powers = dict(unit.powers)
    for name, exponent in other.powers.items():
        powers[name] = powers.get(name, 0) + exponent * power
    return Unit(unit.factor * other.factor**power, {name: exponent for name, exponent in powers.items() if exponent})


def _meanings(word: str, after: str, *, is_next: bool) -> tuple[Unit, ...]:
    """Returns the units of a word; `after` is the text behind it, `is_next` says that a unit stands right before it."""
    if word in _SYMBOLS_THAT_ARE_WORDS and re.match(r"\s+[^\W\d]", after) and (word == "in" or is_next):
        return ()  # `5 in total`
    table = _units()
    name = "_".join(word.replace("µ", "μ").replace("° ", "°").split())
    for spelling in (name, name.casefold(), singular(name), name.casefold().removesuffix("s") if len(name) > 2 else ""):
        # A single letter means what it does in its own case only: 5 G are no grams.
        if spelling in table and (len(name) > 1 or spelling == name):
            return table[spelling]
    return ()


@lru_cache(maxsize=1)
def _units() -> dict[str, tuple[Unit, ...]]:
    table: dict[str, tuple[Unit, ...]] = {}

    def add(name: str, factor: Fraction, powers: dict[str, int]) -> None:
        table[name] = (*table.get(name, ()), Unit(factor, powers))

    for line in _METRIC.strip().splitlines():
        prefixes, size, bases, symbols, names = line.split("|")
        some = {prefix: exponent for prefix, exponent in _PREFIXES.items() if prefix in prefixes}
        for spellings, known in ((symbols, {"": 0} | some), (names, {"": 0} | _PREFIX_NAMES)):
            for spelling in spellings.split():
                for prefix, exponent in known.items():
                    if prefix + spelling not in table:
                        add(prefix + spelling, Fraction(size) * Fraction(10) ** exponent, _powers(bases))
    for line in _OTHERS.strip().splitlines():
        size, bases, names = line.split("|")
        for name in names.split():
            for base in [bases] if name != "度" else bases.split():
                add(name, Fraction(size), _powers(base))
    return table


def _powers(bases: str) -> dict[str, int]:
    parts = (re.fullmatch(r"([^\d-]+)(-?\d)?", base) for base in bases.split())
    return {part[1]: int(part[2] or 1) for part in parts if part}
