"""Quantities: a number with its scale word, unit and currency, as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.text.numbers.claims import ABOUT, BOUND_BEHIND, NEGATION, WORK_BEHIND
from rewards.text.numbers.measures import Unit, product, singular, unit_at
from rewards.text.numbers.number_words import HAN, WORDS, number_of_han, number_of_words
from rewards.text.patterns import Pattern
from rewards.text.typography import plain_typography, without_markup

LONGEST = 1000  # characters; a longer text is no quantity

_PLAIN = (  # replaces what LaTeX writes by plain characters
    (Pattern(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (Pattern(r"\\approx(?![a-zA-Z])"), "≈"),
    (Pattern(r"\^?\{?\\circ\b\}?|\\degree\b"), "°"),
    (Pattern(r"\\%"), "%"),
    (Pattern(r"\\_"), "_"),
    (
        Pattern(r"(?<=[\d}])\s*\\[dt]?frac\s*(?:\{\s*(\d{1,40})\s*\}|(\d))\s*(?:\{\s*(\d{1,40})\s*\}|(\d))"),
        r" \1\2/\3\4 ",
    ),
    (Pattern(r"\\[dt]?frac\s*(?:\{\s*([^{}]{1,80})\s*\}|(\d))\s*(?:\{\s*([^{}]{1,80})\s*\}|(\d))"), r"\1\2/\3\4"),
    (Pattern(r"\\Omega(?![a-zA-Z])"), "Ω"),
    (Pattern(r"\\mu(?![a-zA-Z])\s*"), "μ"),
    (Pattern(r"\^\{\s*(-?\d{1,3})\s*\}(?!\d)"), r"^\1"),
    (Pattern(r"(?<=\d)\{([.,:])\}(?=\d)"), r"\1"),
)
_PLAIN_NUMBER = (
    r"(?:[1-9]\d{0,2}(?:,\d{3}){1,12}(?![\d,])(?:\.\d{1,40})?"  # 1,204.5
    r"|[1-9]\d?(?:,\d\d){1,6},\d{3}(?![\d,])(?:\.\d{1,40})?"  # 12,34,567, as in India
    r"|[1-9]\d{0,2}(?:\.\d{3}){1,12},\d{1,40}(?![\d.,])|[1-9]\d{0,2}(?:\.\d{3}){2,12}(?![\d.,])"  # 1.204,5
    r"|[1-9]\d{0,2}(?:[ '_]\d{3}){1,12}(?!\d)(?:\.\d{1,40}|,\d{1,2}(?![\d,]))?"  # 1 204 567.5
    r"|0,\d{1,40}(?![\d,])|\d{1,40},(?:\d{1,2}|\d{4,40})(?![\d,])"  # 1,5
    r"|\d{1,310}(?:\.\d{1,300})?|\.\d{1,300})"
)
_POWER = r"10\s*\^\s*\{?\s*(?P<power%d>[-+]?\d{1,4})(?!\d)\s*\}?"
_SIGN = r"(?P<sign>(?<![\d)])[-+]\s*|\b(?:minus|negative)\s+|负)?"
_NUMBER = Pattern(
    rf"{_SIGN}(?:{_POWER % 1}|(?P<whole>\d{{1,15}})(?:\s+|\s+and\s+)(?P<top>\d{{1,9}})/(?P<bottom>\d{{1,9}})(?![\d/.,])"
    rf"|(?P<value>{_PLAIN_NUMBER})(?P<half>\s+and\s+a\s+half\b)?"
    rf"(?:[eE](?P<exponent>[-+]?\d{{1,4}})(?!\d)|\s*[×x*]\s*{_POWER % 2}|\s*/\s*(?P<below>{_PLAIN_NUMBER}))?)"
    rf"|{_SIGN.replace('P<sign>', 'P<sign_of_words>')}(?:\b(?P<words>{WORDS})\b(?P<half_of_words>\s+and\s+a\s+half\b)?"
    rf"|(?P<han>{HAN}{{1,30}}))",
    re.IGNORECASE,
)
_CURRENCY = Pattern(
    r"(?P<sign>[-+]\s*)?(?P<symbol>(?:\b[A-Z]{1,3})?\$|[€£¥₹₩]|\b(?:USD|EUR|GBP|JPY|CNY|RMB|INR|Rs\.?)(?=\s|$))\s*$"
)
_LETTER_SCALES = {
    "k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "Mn": 10**6, "mln": 10**6,
    "B": 10**9, "b": 10**9, "bn": 10**9, "Bn": 10**9, "T": 10**12, "tn": 10**12,
}  # fmt: skip
WORD_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "lac": 10**5, "million": 10**6, "mil": 10**6,
    "crore": 10**7, "billion": 10**9, "trillion": 10**12, "百": 100, "千": 10**3, "万": 10**4, "萬": 10**4,
    "亿": 10**8, "億": 10**8,
}  # fmt: skip
"""The factor of each word that may stand behind a number in digits."""
_SCALE = Pattern(
    r"\s*(?:(?P<word>(?:dozen|hundred|thousand|lakh|lac|million|mil|crore|billion|trillion)s?\b|百|千(?![米克瓦])|[万萬亿億])"
    r"|(?P<letter>k|mn|Mn|mln|M|bn|Bn|B|tn|(?<=\d)[KTb])(?![^\W_]))"
)
_SHARE = Pattern(
    r"\s*(?:(?P<percent>%|per\s?cent\b|pct\b|percentage(?:\s+points?)?\b)|(?P<small>‰|ppm\b|ppb\b|per\s?mille\b))",
    re.IGNORECASE,
)
_SMALL = {"‰": 10**3, "per mille": 10**3, "permille": 10**3, "ppm": 10**6, "ppb": 10**9}

_SMALL_MILLION = Pattern(r"\s*m(?![^\W_])")
_NO_UNIT = Pattern(r"(?<=\d)[ACF](?![^\W_])|(?<=\d\d\d0)s(?![^\W_])|\s+A(?=\s)")  # `5A` may be a room, `1990s` a decade
_BETWEEN_PARTS = Pattern(r"\s*(?:,\s*)?(?:and\s+)?|")
_NOUN = Pattern(
    r"(?:[个個只隻条張张本位名辆頭头匹件块塊支把]?(?=\W|$|[\u4e00-\u9fff])|(?=\s))\s*"
    r"(?!(?:in|on|of|for|at|per|each|a|an|the|as|by|from|with|during|since|when|which|that|this|so|and|or|not|is|are|was|were|total"
    r"|altogether|overall|approximately|approx|about|exactly|only|rounded|to|respectively|please|here|there|now|according|based)\b)"
    r"([^\W\d_](?:[^\W\d_]|['-]){0,40}(?:[\s-][^\W\d_]{1,40}){0,3})"
)
_IN_BRACKETS = Pattern(r"(\d)\s*\(([^\W\d_][^()]{0,40})\)$")  # 5 (cm)
_MARKUP = Pattern(r"[\\$*_~{}]")
_RANGE = Pattern(r"(?<=\d)\s?[~～〜]\s?(?=\d)")
_HUNDREDTHS = Pattern(rf"百分之\s*(?:(\d{{1,9}}(?:\.\d{{1,9}})?)|({HAN}{{1,5}}))")
_LABEL = Pattern(r"1[5-9]\d\d|20\d\d|0\d+")
_ALONE = Pattern(rf"(?:[a-z](?:_\w)?\s*=\s*|=\s*)?(?:{ABOUT}\s*)?", re.IGNORECASE)
_WORDS_BEHIND = Pattern(r"\s*(?:[^\W\d_]|-(?=\w)){0,40}(?:\s(?:[^\W\d_]|-(?=\w)){1,40}){0,4}[.\s]*")
_NO_NOUN = Pattern(
    rf"^(?:{BOUND_BEHIND}|{WORK_BEHIND})|{NEGATION}|[点月号楼折届但和或\u0370-\u03ff]|^\s*[a-z]\b|\b(?:january|february|march|april|may|june|july|august|september"
    r"|october|november|december|[ap]m|bc|ad|and|or|to|is|was|are|were|be|older|younger|over|under|above|below|up|more|less|fewer|plus"
    r"|least|most|if|but|than|as|something|odd|maybe|perhaps|point|half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?"
    r"|ninths?|tenths?|hundredths?|thousandths?|hundreds?|thousands?|[mbtr]{1,2}illions?)\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number, and what it is a number of."""

    value: Fraction
    """The number as written: 45 for 45 %, 5.2 for 5.2 million."""
    scale: Fraction = Fraction(1)
    """The factor of `million`, `k` or `‰` after it."""
    units: tuple[Unit, ...] = ()
    """The meanings of its unit; none where it has no known unit."""
    noun: str = ""
    """The things that are counted, in lower case and the singular."""
    is_percent: bool = False
    is_sum: bool = False
    """It has several parts, such as hours and minutes, so that its number alone says nothing."""
    is_label: bool = False
    """It may name a year or another thing, rather than measure one: `2015`, `007`."""
    is_decimal: bool = False
    """It is written with decimals, so that it may be rounded."""
    is_lowest: bool = True
    """It is no fraction that can be reduced: `6/4`, `8/1`, `0.5/2`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The first quantity of a text, and the text around it."""

    before: str
    quantity: Quantity
    after: str
    """Begins behind number and scale where the unit is no known one, else behind the unit."""


def plain_quantities(text: str) -> str:
    r"""Returns a text with numbers and units in plain characters: `5\frac{1}{2}\,\text{cm}` as `5 1/2 cm`, `5½` as `5 1/2`."""
    if text.isascii() and not _MARKUP.search(text):
        return _unquoted(" ".join(text.split()).strip(" `"))
    text = text.replace("–", "-").replace("∶", ":")
    text = _RANGE.sub("-", text)
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    if (text.count("$") - text.count(r"\$")) % 2:  # a currency; dollars around a formula come in pairs
        text = text.replace(r"\$", "$").replace("$", r"\$")
    text = without_markup(plain_typography(text))
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    text = _HUNDREDTHS.sub(lambda match: f"{match[1] or number_of_han(match[2])}%", text)
    return _unquoted(" ".join(text.replace(r"\$", "$").split()).strip(" *_`"))


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] + text[-1] in ("''", '""', "{}")  # else `5'` may be feet
    return text[1:-1].strip() if is_quoted else text


def read_quantity(text: str) -> Reading | None:
    """Returns the first quantity of a text from `plain_quantities`, with the text before and after it; `None` without one.

    A number in digits comes before one in words. `3 hours 20 minutes` is one quantity.
    """
    if len(text) > LONGEST:
        return None
    has_digits = any(map(str.isdecimal, text))
    match = next((match for match in _NUMBER.finditer(text) if not has_digits or _is_in_digits(match)), None)
    if match is None:
        return None
    before = text[: match.start()]
    currency = _CURRENCY.search(before)
    read = _quantity_of(match, text, currency)
    if read is None:
        return None
    quantity, end = read
    while quantity.units and (more := _NUMBER.match(text, _BETWEEN_PARTS.match(text, end).end())):
        part = None if more["sign"] or not _is_in_digits(more) else _quantity_of(more, text, None)
        size = _part_of(part[0], quantity) if part else None
        if part is None or size is None:
            break
        value = quantity.value + (-size if quantity.value < 0 else size)
        quantity, end = replace(quantity, value=value, is_sum=True), part[1]
    return Reading(before[: currency.start()] if currency else before, quantity, text[end:])


def whole_quantity(text: str) -> Quantity | None:
    """Returns the quantity that all of a text from `plain_quantities` is, with a unit or a noun; `None` where it says more or less.

    `x = 5 cm` and `about 5 red apples` are quantities; `at least 5`, `5 or more`, `Room 5` and `5 May` are not.
    """
    reading = read_quantity(_IN_BRACKETS.sub(r"\1 \2", text))
    if reading is None or not _ALONE.fullmatch(reading.before.strip()):
        return None
    rest = reading.after.rstrip(" .")
    # A capital begins a name: `10 Downing Street`, `4 May`.
    is_noun = rest == rest.casefold() and _WORDS_BEHIND.fullmatch(rest) and not _NO_NOUN.search(rest)
    return reading.quantity if not rest or is_noun else None


def convert(found: Quantity, wanted: Quantity) -> Fraction | None:
    """Returns the number of a quantity in scale and unit of another one; `None` where the two differ in kind.

    A side without unit has that of the other side, and one of two nouns may say more than the other: `5 cars`, `5 red cars`. A bare
    number against a percentage is a share up to 1, and percent above: 45 and 0.45 are 45 %, but 0.45 is not 0.45 %.
    """
    value = found.value if found.scale == wanted.scale else found.value * found.scale / wanted.scale
    if found.is_percent != wanted.is_percent:
        if not _is_bare(wanted if found.is_percent else found):
            return None
        if found.is_percent:
            bare = wanted.value * wanted.scale
            is_share = abs(bare) <= 1 or (
                bare.denominator > 1 and found.value == 100 * bare
            )  # 150 % is 1.5, 45.5 % may be 45.5
            return value / 100 if is_share else value
        return value * 100 if abs(found.value) <= 1 else value
    if _is_bare(found) or _is_bare(wanted):
        return None if wanted.is_sum != found.is_sum else value
    if found.units and wanted.units:
        sizes = (a.factor / b.factor for a in found.units for b in wanted.units if a.powers == b.powers)
        size = next(sizes, None)
        return None if size is None else value * size
    if found.units or wanted.units:
        return None
    nouns, others = set(found.noun.split()), set(wanted.noun.split())
    return value if nouns <= others or nouns >= others else None


def _is_bare(quantity: Quantity) -> bool:
    return not (quantity.units or quantity.noun or quantity.is_percent)


def _is_in_digits(match: re.Match[str]) -> bool:
    return not match["words"] and not match["han"]


def _part_of(part: Quantity, whole: Quantity) -> Fraction | None:
    """Returns the size of a quantity, in the unit of another one whose next part it may be: minutes after hours, below one hour."""
    if len(whole.units) != 1 or part.is_sum or part.scale != 1 or whole.scale != 1:
        return None
    sizes = (unit.factor / whole.units[0].factor for unit in part.units if unit.powers == whole.units[0].powers)
    size = next(sizes, None)
    return part.value * size if size is not None and 0 <= part.value * size < 1 else None


def _quantity_of(match: re.Match[str], text: str, currency: re.Match[str] | None) -> tuple[Quantity, int] | None:
    """Returns the quantity whose number has matched, and where it ends; `None` where a letter follows that is no unit."""
    value, end = _value(match), match.end()
    if value is None:
        return None
    if currency and (currency["sign"] or "").startswith("-"):
        value = -value
    scale, is_percent, units, end = _kind_at(text, end, currency)
    is_share = is_percent or scale < 1
    if not units and not is_share and text[end : end + 1].isalpha() and text[end] < "\u3000":
        return None
    noun = "" if units or is_share else noun_of(text[end:])
    is_label = bool(_LABEL.fullmatch(match.group())) and not (units or noun or is_share or scale != 1)
    above, below = (match["top"], match["bottom"]) if match["whole"] else (match["value"], match["below"])
    return Quantity(
        value=value,
        scale=scale,
        units=units,
        noun=noun,
        is_percent=is_percent,
        is_label=is_label,
        is_decimal="." in (match["value"] or "") and not below,
        is_lowest=not below or _is_lowest(_decimal(above or "1"), _decimal(below)),
    ), end


def _is_lowest(above: Fraction, below: Fraction) -> bool:
    return above.denominator == below.denominator == 1 < below and Fraction(above, below).denominator == below


def kind_end(text: str, start: int) -> int:
    """Returns where scale word, percent sign and unit end that begin at a place of a text."""
    return _kind_at(text, start, None)[3]


def _kind_at(text: str, end: int, currency: re.Match[str] | None) -> tuple[Fraction, bool, tuple[Unit, ...], int]:
    """Returns the scale at a place of a text, whether percent follow, the unit's meanings, and where they end."""
    scale = Fraction(1)
    for _ in range(2):  # `5 hundred thousand`, 千万
        if not (found := _SCALE.match(text, end)):
            break
        scale *= WORD_SCALES[singular(found["word"])] if found["word"] else _LETTER_SCALES[found["letter"]]
        end = found.end()
    if currency and (million := _SMALL_MILLION.match(text, end)):
        scale, end = scale * 10**6, million.end()
    if share := _SHARE.match(text, end):
        small = " ".join((share["small"] or "").casefold().split())
        return scale / _SMALL.get(small, 1), bool(share["percent"]), (), share.end()
    units, end = ((), end) if _NO_UNIT.match(text, end) else unit_at(text, end)
    if currency:
        symbol, _ = unit_at(currency["symbol"].rstrip("."))
        money = symbol or (Unit(powers={currency["symbol"]: 1}),)
        # The unit behind may say the same, as in `$42 USD`, or go on, as in `$5 per hour`.
        per = [unit for unit in units if min(unit.powers.values(), default=0) < 0]
        units = tuple(product(one, unit) for one in money for unit in per) or money
    return scale, False, units, end


def noun_of(text: str) -> str:
    """Returns the noun at the beginning of a text, with up to three words before it; `""` where a remark stands there."""
    match = _NOUN.match(text)
    noun = " ".join(map(singular, re.split(r"[\s-]+", match[1].strip()))) if match else ""
    return "" if noun in ("unit", "square unit", "cubic unit", "sq unit") else noun


def _value(match: re.Match[str]) -> Fraction | None:
    """Returns the number that has matched; `None` for number words that make no number, and for a fraction over zero."""
    value: Fraction | None
    if match["words"] or match["han"]:
        number = number_of_words(match["words"]) if match["words"] else number_of_han(match["han"])
        value = None if number is None else Fraction(number)
    elif match["whole"]:
        top, bottom = int(match["top"]), int(match["bottom"])
        value = int(match["whole"]) + Fraction(top, bottom) if top < bottom else None
    else:
        value = _decimal(match["value"] or "1")
        if power := match["power1"] or match["exponent"] or match["power2"]:
            value *= Fraction(10) ** int(power)
        if match["below"]:
            below = _decimal(match["below"])
            value = value / below if below else None
    if value is not None and (match["half"] or match["half_of_words"]):
        value += Fraction(1, 2)
    sign = match["sign"] or match["sign_of_words"] or ""
    return value if value is None or sign.strip() in ("", "+") else -value


def _decimal(number: str) -> Fraction:
    """Returns the value of a `_PLAIN_NUMBER`, whose separators are commas, full stops, blanks, apostrophes or underscores."""
    if number.isdecimal():
        return Fraction(int(number))
    if number.replace(".", "", 1).isdecimal():
        return Fraction(number)
    number = re.sub(r"[ '_]", "", number)
    if re.search(r"\..*,|\..*\.", number) or re.fullmatch(r"0,\d+|\d+,(?:\d{1,2}|\d{4,})", number):
        number = number.replace(".", "").replace(",", ".")  # a decimal comma
    return Fraction(number.replace(",", ""))
