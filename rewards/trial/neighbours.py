"""Neighbours of a reference: wrong answers of the same form, made from its own text by general rules."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from rewards.text.answer_text import marked_answer, normalised, stated_answer
from rewards.text.option_list import options_of
from rewards.text.patterns import Pattern
from rewards.trial.other_places import other_places
from rollout.types import Prompt

MOST = 5
"""Neighbours of one reference."""
NONSENSE = "Qzxv qzx"
MOST_WORDS = 4  # a longer text may say the same without one of them
LONGEST = 80  # characters of a text that is an answer, rather than a solution

_NUMBER = Pattern(
    r"(?<![\d:.])(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)(?P<second>:[0-5]\d)?(?!\d)"
    r"|(?<![A-Za-z\d_^.])(?<![_^]\{)(?<![eE][-+])(?<!\b0/)(?<!\{0\}\{)"  # no index, exponent, or number under a 0
    r"(?P<number>(?:\d{1,3}(?:,\d{3}){1,9}(?!\d)|\d{1,60})(?:\.\d{1,60})?)"
    r"(?!\^\{?0)(?![^,;=]{0,80}=)"  # before the equals sign is the question
)
_UNIT = Pattern(r"(?<=[\d\s])(?:[A-Za-z]+|米|秒|克|公里|公斤|小时|万|亿)(?![A-Za-z])")
_UNITS = dict(  # each with one that means something else
    pair.split(":")
    for pair in """
    m:s s:m cm:kg mm:ms ms:mm km:kg kg:km g:cm h:km hr:km min:kg ft:s in:s lb:ft lbs:ft L:m ml:cm meter:second metre:second
    meters:seconds metres:seconds centimeters:grams centimetres:grams kilometers:kilograms kilometres:kilograms kilograms:kilometers
    grams:centimeters second:meter seconds:meters minute:gram minutes:grams hour:kilometer hours:kilometers day:mile days:miles
    weeks:miles years:miles feet:seconds inches:seconds inch:second miles:hours dollars:cents cents:dollars euros:cents
    thousand:million million:billion billion:million k:M K:M M:B am:pm pm:am AM:PM PM:AM
    米:秒 秒:米 克:米 公里:公斤 公斤:公里 小时:公里 万:亿 亿:万
    """.split()
)
_OPPOSITES = (("yes", "no"), ("true", "false"), ("correct", "incorrect"), ("是", "否"), ("对", "错"), ("有", "没有"))
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_HAN_NUMBERS = "零一二三四五六七八九十"
_LETTER = Pattern(r"([(\[]?)([A-Za-z])([)\]]?\.?|[)\]]?[.:]\s.{1,80}|[)\]]\s?.{1,80})")
_LETTERS = Pattern(r"[A-Z](?:,?\s?(?:and\s)?[A-Z]){1,9}")
_MEMBERS = Pattern(r",?\s+and\s+|[,;]\s+|、")
_SUM = Pattern(r"\d\s?(?:[A-Za-z]{1,12}|['\"°])\.?,?\s?(?:and\s)?\d|\d\s\d{1,3}/\d")  # `3 hours 20 minutes`, `3 1/2`
_COUNT = Pattern(r"(?:no|an?)\s", re.IGNORECASE)
_BRACKET = Pattern(r"[(\[{]")
_WORD = Pattern(r"[^\W\d_]{2,}")
_CHINESE = Pattern(r"[\u3040-\u30ff\u3400-\u9fff]")


def neighbours(prompt: Prompt, text: str) -> list[str]:
    """Returns a few wrong answers of the form of a right one: another number, unit, letter, option, member, place or word.

    They are far from it, so that no sensible tolerance pays them.

    Args:
        prompt: The prompt with the reference; a column `options` gives other options.
        text: A text of the reference; none of the results says the same.
    """
    given = prompt.answer if isinstance(prompt.answer, list | tuple) else [prompt.answer]
    right = {normalised(text), *(normalised(str(each)) for each in given)}
    found = dict.fromkeys(each for each in _others(prompt, text) if normalised(each) not in right)
    return list(islice(found, MOST))


def same_form(text: str) -> str:
    """Returns nonsense of the form of a text: its JSON with other values, or letters without a meaning.

    A reward that pays this as well looks at the form alone.
    """
    value = _json(text)
    if value is not None:
        return json.dumps(_without_values(value), ensure_ascii=False)
    return NONSENSE.upper() if text.isupper() else NONSENSE.lower() if text.islower() else NONSENSE


def _without_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_values(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_values(each) for each in value]
    return NONSENSE if isinstance(value, str) else 0


def _others(prompt: Prompt, text: str) -> Iterator[str]:
    value = _json(text)
    if value is not None:
        yield from (json.dumps(other, ensure_ascii=False) for other in _other_values(prompt.answer, value))
        return
    answer = _answer_of(text)
    if 0 < len(answer) <= LONGEST:
        before, _, behind = text.rpartition(answer)
        yield from (before + other + behind for rule in _RULES for other in rule(prompt, answer))


def _answer_of(text: str) -> str:
    """Returns the part of a reference that is its answer: all of it, or what ends a solution."""
    if "####" in text:
        return text.rpartition("####")[2].strip()
    marked, stated = marked_answer(text), stated_answer(text)
    found = marked[0] if marked is not None else stated[0].rstrip(". ") if stated is not None else text.strip()
    return found if found in text else ""


def _json(text: str) -> Any:
    """Returns the list or the object that a text is; `None` for any other text."""
    try:
        value = json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None


def _other_values(answer: Any, value: Any) -> Iterator[Any]:
    """Yields other places for boxes and points, and lists of texts or numbers with another member or one less."""
    places = list(other_places(answer, value))
    yield from places
    if places or not isinstance(value, list) or any(isinstance(item, list | dict) for item in value):
        return
    if len(value) > 1:
        yield value[:-1]
    for other in islice(_others(Prompt(id="", messages=[]), str(value[-1])) if value else [], 1):
        yield [*value[:-1], other if isinstance(value[-1], str) else _json_number(other)]


def _json_number(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _other_options(prompt: Prompt, text: str) -> Iterator[str]:
    """Yields other letters for a letter, and the texts of other options for the text of an option."""
    try:
        options = options_of(prompt.columns.get("options"))
    except ValueError:
        options = {}
    if letter := _LETTER.fullmatch(text):
        near = [chr(ord(letter[2]) + step) for step in (1, -1)]
        known = [each for each in options if len(each) == 1 and each != letter[2].upper()]
        others = known if letter[2].upper() in options else [each for each in near if each.isalpha()]
        yield from (letter[1] + other + letter[3] for other in others[:2])
    elif normalised(text) in map(normalised, options.values()):
        yield from list(options.values())[:3]
    elif _LETTERS.fullmatch(text):
        before = chr(ord(text[-1]) - 1)  # A has no letter before it
        yield text[:-1] + ("Z" if before in text or not before.isalpha() else before)


def _other_verdicts(prompt: Prompt, text: str) -> Iterator[str]:
    for pair in _OPPOSITES:
        for one, other in (pair, pair[::-1]):
            if text.casefold() == one:
                yield _in_case_of(text, other)


def _other_numbers(prompt: Prompt, text: str) -> Iterator[str]:
    """Yields the text with another first, last and middle number; a number alone with a digit in front, and without its sign."""
    matches = list(_NUMBER.finditer(text))
    is_sum = len(matches) > 1 and _SUM.search(text)
    for place in dict.fromkeys([0, len(matches) - 1, len(matches) // 2]) if matches else []:
        before, match, behind = text[: matches[place].start()], matches[place], text[matches[place].end() :]
        if match["hour"]:
            yield f"{before}{(int(match['hour']) + 3) % 12 + 1}:{match['minute']}{match['second'] or ''}{behind}"
            yield f"{before}{match['hour']}:{(int(match['minute']) + 30) % 60:02}{match['second'] or ''}{behind}"
        elif not is_sum or place == 0:
            yield before + _other_number(match.group()) + behind
        elif "/" not in text and len(matches[0].group()) == 1:
            yield f"{before}9{match.group()}{behind}"  # so much that a tolerance of the sum does not pay it
    if len(matches) == 1 and matches[0].group() == text and not matches[0]["hour"]:
        yield "1" + text.replace(",", "")
    if text[:1] == "-" and len(matches) == 1:
        yield text[1:]


def _other_number(number: str) -> str:
    """Returns a number with another leading digit, at least two fifths away; for a year another one of its time."""
    if len(number) == 4 and number.isdigit() and 1500 <= int(number) < 2100:
        return str(int(number) - 85 if int(number) >= 1585 else int(number) + 85)
    if number[0] == "0" and (len(number) == 1 or number[1] == "."):
        return "4" + number[1:]
    place = next((place for place, digit in enumerate(number) if digit in "123456789"), 0)
    digit = int(number[place])
    return number[:place] + str(digit + 4 if digit < 6 else digit - 4) + number[place + 1 :]


def _other_number_words(prompt: Prompt, text: str) -> Iterator[str]:
    for match in islice(_WORD.finditer(text), 12):
        word = match.group()
        if word.casefold() in _NUMBER_WORDS:
            other = _NUMBER_WORDS[(_NUMBER_WORDS.index(word.casefold()) + 5) % len(_NUMBER_WORDS)]
            yield text[: match.start()] + _in_case_of(word, other) + text[match.end() :]
            return
    if len(text) == 1 and text in _HAN_NUMBERS:
        yield _HAN_NUMBERS[(_HAN_NUMBERS.index(text) + 5) % len(_HAN_NUMBERS)]


def _other_units(prompt: Prompt, text: str) -> Iterator[str]:
    """Yields the text with another unit, where it has one number."""
    unit = _UNIT.search(text) if len(list(_NUMBER.finditer(text))) == 1 else None
    if unit and unit.group() in _UNITS:
        yield text[: unit.start()] + _UNITS[unit.group()] + text[unit.end() :]


def _other_members(prompt: Prompt, text: str) -> Iterator[str]:
    """Yields a list of numbers without its last member."""
    ends = list(_MEMBERS.finditer(text))
    members = _MEMBERS.split(text)
    if (
        ends
        and len(members) < 30
        and all(_NUMBER.search(each) and len(each) < 12 for each in members)
        and not _BRACKET.search(text)
    ):
        yield text[: ends[-1].start()]


def _other_words(prompt: Prompt, text: str) -> Iterator[str]:
    """Yields a text of words with another one in place of the longest, and a word as the beginning of a longer one."""
    words = [match.group() for match in _WORD.finditer(text)]
    is_number = bool(_COUNT.match(text)) or any(word.casefold() in _NUMBER_WORDS for word in words)
    is_other = _LETTER.fullmatch(text) or is_number
    if not 0 < len(words) <= MOST_WORDS or is_other or any(map(str.isdigit, text)) or "\\" in text:
        return
    longest = max(words, key=len)
    if _CHINESE.search(longest):
        others = ("石头", "河流")
    else:
        others = ("stone", "river")
    other = next((each for each in others if each not in text.casefold()), others[0])
    yield text.replace(longest, _in_case_of(longest, other), 1)
    if len(text.split()) == 1:
        yield text + other


def _in_case_of(word: str, other: str) -> str:
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[:1].isupper() else other


_RULES: Sequence[Callable[[Prompt, str], Iterator[str]]] = (
    _other_options,
    _other_verdicts,
    _other_numbers,
    _other_number_words,
    _other_units,
    _other_members,
    _other_words,
)
