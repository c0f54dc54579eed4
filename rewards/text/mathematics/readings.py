r"""Answers of mathematics read whole: quantities, lists, named values, ratios, bounds in words, and else a formula or a word."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.text.mathematics.formulas import plain_formula
from rewards.text.mathematics.quantities import is_same_quantity, read_quantity
from rewards.text.numbers.amounts import Quantity
from rewards.text.numbers.measures import Unit, unit_at
from rewards.text.patterns import Pattern

_EQUALS = Pattern(r"(?<![<>!:\\])=")
_NAME = r"(?:\\?[A-Za-z]+(?:_\{?\w{1,6}\}?)?(?:\([A-Za-z]\))?|\|[A-Z]{1,3}\|)"
_NAMED = Pattern(rf"\s*({_NAME}|[A-Za-z][A-Za-z ]{{0,30}})\s*[:=]\s*")
_SIMPLE_NAME = Pattern(rf"\s*{_NAME}\s*")
_SPLIT = Pattern(r"\s*(?:(?<!\d),|,(?!\d{3}(?!\d))|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|和|或)\s*")
_SIDE_BY_SIDE = Pattern(r"-?\d{1,20}(?:\.\d{1,20})?(?:\s+-?\d{1,20}(?:\.\d{1,20})?){1,40}")
_RATIO = Pattern(r"\d{1,20}(?:\.\d{1,20})?(?:\s*:\s*\d{1,20}(?:\.\d{1,20})?){1,10}")
_ANY_UNIT = Pattern(r"(?:square |cubic |sq )?units?")
_BASED = Pattern(r"\(?[0-9A-F]*\d[0-9A-F]*\)?\s*_\s*\{?\d{1,9}\}?")
_REMAINDER = Pattern(r"(?<=\d)\s*,?\s*(?:with\s+)?(?:a\s+)?(?:remainder|rem\.?|[rR]|余)\s*(?:of\s+)?(?=\d)")
_TIME = Pattern(r"(\d{1,2}(?::(?!00[^:])\d{2}){0,2})(?::00)?\s*([ap])\.?\s?m\.?", re.IGNORECASE)
_ANSWER_WORDS = Pattern(
    r"^\s*(?:the\s+)?(?:final\s+)?(?:answer|result|solution)\s*(?:is|:|=)\s*:?\s*|^\s*(?:答案|答)\s*(?:是|为|:)\s*|^\s*the\s+(?=\d)",
    re.IGNORECASE,
)
_CLAUSE = Pattern(
    r"[,\s]*\b(?:for\s+(?:any|all|some|every|each)|where|for\s+(?=[a-zA-Z]\s*(?:\\|=|>|<)))\b.*$", re.DOTALL
)
_NO_SOLUTION = Pattern(
    r"(?:there\s+(?:is|are)\s+)?no\s+(?:real\s+|such\s+)?(?:solutions?|roots?|values?)(?:\s+exists?)?"
    r"|无解|无实数解|the empty set|empty set",
    re.IGNORECASE,
)
_VALUE = r"(-?[\d.,/\\{}a-z^]{1,60})"
_BOUNDS = (
    (
        rf"(?:at\s+least|no\s+(?:less|fewer)\s+than|not\s+less\s+than|至少|不少于|不小于|大于等于)\s*{_VALUE}",
        r"[\1,\\infty)",
    ),
    (
        rf"(?:at\s+most|no\s+(?:more|greater)\s+than|not\s+more\s+than|up\s+to|至多|不超过|不大于|小于等于)\s*{_VALUE}",
        r"(-\\infty,\1]",
    ),
    (rf"(?:more|greater|larger|bigger)\s+than\s*{_VALUE}|(?:above|over|大于|超过)\s*{_VALUE}", r"(\1\2,\\infty)"),
    (rf"(?:less|fewer|smaller|lower)\s+than\s*{_VALUE}|(?:below|under|小于|低于)\s*{_VALUE}", r"(-\\infty,\1\2)"),
    (rf"{_VALUE}\s+or\s+(?:more|greater|above)", r"[\1,\\infty)"),
    (rf"{_VALUE}\s+or\s+(?:less|fewer|below)", r"(-\\infty,\1]"),
    (rf"(?:between\s+|from\s+)?{_VALUE}\s*(?:to|and|至|到)\s*{_VALUE}(?<=\d)", r"[\1,\2]"),
    (r"(\d{1,20}(?:\.\d{1,9})?)\s*[–~-]\s*(\d{1,20}(?:\.\d{1,9})?)", r"[\1,\2]"),
    (
        rf"(?:all\s+)?(?:the\s+)?real\s+numbers?\s+(?:except|but|other\s+than|excluding)\s*(?:for\s+)?{_VALUE}",
        r"(-\\infty,\1)\\cup(\1,\\infty)",
    ),
    (r"(?:all\s+|any\s+)?real(?:\s+numbers?|s)|\\mathbb\s*\{?R\}?", r"(-\\infty,\\infty)"),
    (rf"[a-zA-Z]\s*(?:\\neq?|!=)\s*{_VALUE}", r"(-\\infty,\1)\\cup(\1,\\infty)"),
)
_BOUND_PATTERNS = tuple((Pattern(pattern, re.IGNORECASE), plain) for pattern, plain in _BOUNDS)
_WORDS = Pattern(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[\u0370-\u1fff\u3040-\u9fff]")
_ENVIRONMENT = Pattern(
    r"\\(?:begin|end)\{[a-z]{1,10}\*?\}(?:\{[clr|]{0,20}\})?|\\(?:mathbb|mathcal|overline|overrightarrow)\{[A-Z]{1,3}\}"
)
_OPERATOR = Pattern(r"\d|[\^+=*/]|\\(?:frac|sqrt|cdot|times|pi)")
_SHORT = frozenset(
    "is it to in of on at an as by be no so we he she if or not the and but for are was yes all any one two".split()
)
_FUNCTIONS = frozenset(
    {
        "pi",
        "oo",
        "inf",
        "infty",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "sqrt",
        "mod",
        "gcd",
        "lcm",
    }
    | {"max", "min", "det", "and", "or", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An answer in the most exact of its forms."""

    text: str
    """The plain formula."""
    name: str = ""
    """The left side of `x = 5`."""
    is_equation: bool = False
    """True where the left side is more than a name, as in `2x + z = 1`; the quantity is its right side."""
    quantity: Quantity | None = None
    items: tuple[Quantity, ...] = ()
    """The numbers of a list; their order does not count."""
    named: tuple[tuple[str, Quantity], ...] = ()
    ratio: tuple[Fraction, ...] = ()
    is_verbatim: bool = False
    """True for a text, which only the same text equals."""
    has_words: bool = False
    """True where words are left, so that it is no formula."""
    units: tuple[Unit, ...] = ()
    """The meanings of the unit behind a formula that is no quantity; `formula` is without it."""
    formula: str = ""
    about: Reading | None = None
    """The rounded value of `1/3 \\approx 0.33`."""

    @property
    def key(self) -> str:
        """The text without blanks and signs that mean nothing; long words in lower case."""
        text = re.sub(r"(?<=\d)\s+(?=\d)", "_", self.text)
        text = re.sub(r"\s+|\\(?![A-Za-z{}|])|\$|\.$", "", text)
        return text.lower() if re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", text)) else text


def read_answer(written: str) -> Reading | None:
    """Returns the reading of a whole answer; `None` where nothing is written."""
    exact, sign, rounded = plain_formula(written).partition(r"\approx")
    if not sign or _SIMPLE_NAME.fullmatch(exact) or not exact.strip(" ${"):
        return _read(rounded if sign else exact)
    reading, about = _read(exact), _read(rounded)
    return reading if reading is None else replace(reading, about=about)


def _read(text: str) -> Reading | None:
    text = _CLAUSE.sub("", _ANSWER_WORDS.sub("", text)).strip().rstrip(".,;: ").strip()
    if text[:1] == "$" and text.count("$") == 2 and text[-1:] == "$":
        text = text[1:-1].strip()
    if not text:
        return None
    if _NO_SOLUTION.fullmatch(text):
        text = r"\emptyset"
    text = _REMAINDER.sub("R", text)
    if (time := _TIME.fullmatch(text)) is not None:
        text = f"{time[1]}{time[2].lower()}m"
    if r"\ldots" in text or time is not None or re.fullmatch(r"\d+R\d+", text):
        return Reading(text=text, is_verbatim=True)
    reading = _numbers(text)
    if reading is None and _BASED.fullmatch(text):  # a digit beyond its base
        return None
    return reading or _formula(_bound(text))


def _bound(text: str) -> str:
    """Returns a bound in words, or a range, as an interval."""
    for pattern, plain in _BOUND_PATTERNS:
        if (bound := pattern.fullmatch(text)) is not None:
            return str(bound.expand(plain))
    return text


def _numbers(text: str) -> Reading | None:
    """Returns the reading of a text that is numbers, and names of them, alone."""
    name = text.partition("=")[0] if _EQUALS.search(text) else ""
    is_named = bool(_SIMPLE_NAME.fullmatch(name))
    last = _EQUALS.split(text)[-1]
    parts = [read_quantity(part) for part in _EQUALS.split(text)]
    if (
        len(parts) > 1
        and parts[-1]
        and any(part and not is_same_quantity(parts[-1], part) for part in parts if all(parts))
    ):
        return Reading(text=text, is_verbatim=True)  # a false equation, as `7 = 5`
    if len(_SPLIT.split(text)) == 1 and (quantity := read_quantity(last)) is not None:
        is_equation = not is_named and any(character.isalpha() for character in re.sub(r"\\[a-z]+", "", name))
        return Reading(
            text=text, name=name.strip() if is_named else "", is_equation=is_equation, quantity=quantity, formula=text
        )
    if (quantity := read_quantity(text)) is not None:
        return Reading(text=text, quantity=quantity, formula=text)
    if _RATIO.fullmatch(text):
        return Reading(text=text, ratio=tuple(Fraction(part) for part in text.split(":")), formula=text)
    if _SIDE_BY_SIDE.fullmatch(text):
        return Reading(
            text=text, items=tuple(filter(None, map(read_quantity, text.split()))), formula=", ".join(text.split())
        )
    return _list(text)


def _list(text: str) -> Reading | None:
    inner = text.removeprefix(r"\{").removesuffix(r"\}") if text.startswith(r"\{") and text.endswith(r"\}") else text
    inner = inner[1:-1] if inner[:1] == "{" and inner[-1:] == "}" and inner.count("{") == 1 else inner
    parts = [part for part in _SPLIT.split(inner) if part.strip()]
    names: list[str] = []
    values: list[Quantity] = []
    for part in parts[:100]:
        named = _NAMED.match(part)
        names.append(named[1].strip().casefold() if named else "")
        value = part[named.end() :] if named else part
        both = re.match(r"\s*\\pm\s*", value)
        quantity = read_quantity(value[both.end() :] if both else value)
        if quantity is None:
            return None
        values.append(quantity)
        if both:
            names.append(names[-1])
            values.append(replace(quantity, value=-quantity.value))
    if not values or (len(values) == 1 and inner is text):
        return None
    if len(values) == 1:
        return Reading(text=text, quantity=values[0], formula=inner)
    distinct = {name for name in names if name}
    if len(distinct) == len(values):
        return Reading(text=text, named=tuple(zip(names, values, strict=True)), formula=text)
    if len(distinct) <= 1:
        return Reading(text=text, items=tuple(values), formula=", ".join(parts))
    return None


def _formula(text: str) -> Reading:
    """Returns the reading of what is no list of numbers: a formula with an optional unit, or words."""
    formula, units = text, tuple[Unit, ...]()
    tail = re.search(
        r"(?<=[\w})°])\s+((?:square |cubic )?[A-Za-z\u4e00-\u9fff]{1,20}(?:\^\{?[23]\}?)?(?:/[a-z]{1,10})?)$", text
    )
    if tail is not None and _may_have_unit(text[: tail.start()], tail[1]):
        known, end = unit_at(tail[1])
        if _ANY_UNIT.fullmatch(tail[1]) or end == len(tail[1]):
            formula, units = text[: tail.start()].strip(), known
    left = _ENVIRONMENT.sub("", formula)
    words = [word for word in _WORDS.findall(re.sub(r"\\[A-Za-z]+", " ", left)) if word.lower() not in _FUNCTIONS]
    longest = 3 if _OPERATOR.search(left) else 1  # letters of a product: `mgh + 1`, but not `cat`
    products = {
        word for word in words if word.isascii() and ((word.isupper() and len(word) <= 4) or len(word) <= longest)
    }
    names = [word for word in words if word not in products or word in _SHORT]
    formula = re.sub(r"\s*(?<![A-Za-z\\])and(?![A-Za-z])\s*", ", ", formula)
    return Reading(text=text, formula=formula, units=units, has_words=bool(names))


def _may_have_unit(formula: str, word: str) -> bool:
    """Returns whether a word behind a formula may be its unit: `2\\pi h` may be hours, `\\pi r^2 h` is a product."""
    letters = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", formula))
    return bool(re.search(r"\d|\\", formula)) and (len(word) > 1 or (word.islower() and not letters))
