"""Whole numbers in English and Chinese words."""

from __future__ import annotations

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {word: number for number, word in enumerate(_TO_NINETEEN)} | {
    word: 10 * number for number, word in enumerate(_TENS, 2)
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_HAN_DIGITS = "零一二三四五六七八九"
_HAN = {digit: number for number, digit in enumerate(_HAN_DIGITS)}
_HAN_PLACES = {"十": 10, "百": 100, "千": 1000}
_HAN_PLAIN = str.maketrans("〇两兩萬億", "零二二万亿")

WORD = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(_TO_NINETEEN[1:10])})\b)?|(?:{'|'.join(reversed(_TO_NINETEEN))}))"
)
"""Matches a number word up to ninety-nine, for `number_of_words` to read."""

_ANY = rf"(?:{'|'.join([*_TENS, *reversed(_TO_NINETEEN), *_LARGE, 'hundred', 'dozen'])})"

WORDS = rf"(?:half\s+a\s+dozen|(?:an?\s+(?=hundred|thousand|million|billion|dozen))?{_ANY}(?:(?:\s+and)?[-\s]+{_ANY}){{0,12}})"
"""Matches a run of number words of any size (`a hundred and five`, `two dozen`), for `number_of_words` to read."""

HAN = r"[零〇一二两兩三四五六七八九十百千万萬亿億]"
"""Matches a character of a Chinese numeral, for runs of which there is `number_of_han`."""

TO_NINE = f"(?:{'|'.join(_TO_NINETEEN[1:10])})"
TO_TWELVE = f"(?:{'|'.join(reversed(_TO_NINETEEN[1:13]))})"
TEEN = f"(?:{'|'.join(_TO_NINETEEN[10:])})"


def number_of_words(text: str) -> int | None:
    """Returns the number of English words: 25 for `Twenty-five`, 105 for `a hundred and five`; `None` for `five six`."""
    words = text.casefold().replace("-", " ").split()
    if words == ["half", "a", "dozen"]:
        return 6
    total, group, last, before = 0, 0, 10**15, ""
    for place, word in enumerate("one" if word in ("a", "an") else word for word in words):
        if word == "and":
            if before not in ("hundred", *_LARGE):
                return None
        elif word in _SMALL:
            number = _SMALL[word]
            room = 10 if group % 100 >= 20 and group % 10 == 0 else 100 if group % 100 == 0 else 1
            if number >= room or (number == 0 and len(words) > 1) or (group and before in _TO_NINETEEN):
                return None
            group += number
        elif word in ("hundred", "dozen"):
            if place == 0 or not 1 <= group <= 99 or before not in _SMALL:
                return None
            group *= 100 if word == "hundred" else 12
            if word == "dozen":
                return group if place == len(words) - 1 and not total else None
        else:
            if place == 0 or not group or _LARGE[word] >= last:
                return None
            total, group, last = total + group * _LARGE[word], 0, _LARGE[word]
        before = word
    return total + group if before != "and" else None


def number_of_han(numeral: str) -> int | None:
    """Returns the number of a Chinese numeral below 10¹²: 105 for 一百零五; `None` for others, such as 七八 and 一百五."""
    numeral = numeral.translate(_HAN_PLAIN)
    if len(numeral) > 24:
        return None
    total = 0
    above, sign, below = numeral.rpartition("亿")
    for part, factor in ((above if sign else "", 10**8), (below, 1)):
        ten_thousands, is_split, rest = part.rpartition("万")
        total += factor * (10**4 * _of_places(ten_thousands) + _of_places(rest if is_split else part))
    # A sum of characters is the number only if it is written so: 七八 and 一百五 are something else.
    written = _han(total)
    return total if numeral in (written, written[1:] if written.startswith("一十") else written) else None


def _of_places(numeral: str) -> int:
    total, digit = 0, 0
    for character in numeral:
        if character in _HAN_PLACES:
            total, digit = total + (digit or 1) * _HAN_PLACES[character], 0
        else:
            digit = _HAN.get(character, 0)
    return total + digit


def _han(number: int) -> str:
    """Returns the numeral of a number, with 一十 for 十."""
    if number < 10:
        return _HAN_DIGITS[number]
    place, name = next(
        (p, n) for p, n in ((10**8, "亿"), (10**4, "万"), (1000, "千"), (100, "百"), (10, "十")) if p <= number
    )
    count, rest = divmod(number, place)
    text = _han(count) + name
    if rest:
        text += ("零" if rest < place // 10 else "") + _han(rest)
    return text
