"""Times of day, read off a clock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rewards.text.answer_text import answer_part, final_answer
from rewards.text.numbers.amounts import plain_quantities
from rewards.text.numbers.claims import BOUND, BOUND_BEHIND, NEGATION, behind_reasons, result_of
from rewards.text.numbers.number_words import HAN, TEEN, TO_NINE, TO_TWELVE, WORD, number_of_han, number_of_words
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

DAY = 24 * 3600  # seconds

_NUMBER = rf"(?:\d{{1,2}}(?!\d)|{WORD})"
_MINUTES = rf"(?:(?:twenty|thirty|forty|fifty)(?:[-\s]{TO_NINE})?|{TEEN}|(?:oh|o|zero)[-\s]{TO_NINE})"
_NAME = r"(?:12(?:[:.]00)?\s+)?(?P<%s>noon|midday|midnight)\b"
_HALF = r"(?:\s*(?P<half>[ap])\.?\s?m\b\.?|\s+(?:in\s+the|at)\s+(?P<part>morning|afternoon|evening|night)\b)"
_TIME = Pattern(
    rf"(?<![^\W\u4e00-\u9fff])(?<![.:])(?:{_NAME % 'name'}"
    r"|(?P<hour>\d{1,2})(?:\s?[:.;]\s?|\s?h\s?)(?P<minute>\d{2})(?:[:.](?P<second>\d{2})|\s?m(?:in(?:utes?)?)?\b)?(?!\d)(?:\s*o\s?['`]?\s?clock\b)?"
    rf"|(?:(?:a\s+)?(?P<share>quarter|half)|(?P<minutes>{_NUMBER})(?:\s+minutes?)?)\s+(?P<way>past|after|to|till?|before|of(?=\s))"
    rf"\s+(?P<half_past>half\s+past\s+)?(?:{_NAME % 'name_of'}|(?P<of>{_NUMBER})\b(?:\s*o\s?['`]?\s?clock\b)?)"
    rf"|(?P<full>{_NUMBER})\s*o\s?['`]?\s?clock\b"
    rf"|(?P<hour_word>{TO_TWELVE})[-\s]+(?P<minute_word>{_MINUTES})\b(?!\s*(?:o\s?['`]?\s?clock|minutes?|past|to|after|before|till?|of)\b)"
    rf"|(?P<bare>{_NUMBER})(?={_HALF.replace('?P<half>', '').replace('?P<part>', '')}|\s+sharp\b)"
    rf"|(?<=exactly\s)(?P<exact>{_NUMBER})(?=\s*(?:\.?\s*$|[ap]\.?\s?m\b)))(?:{_HALF})?",
    re.IGNORECASE,
)
_CHINESE = Pattern(  # 下午9点15分, 9点半, 差一刻十点
    rf"(?P<part>凌晨|清晨|早上|早晨|上午|中午|下午|傍晚|晚上|夜里|夜晚)?\s*(?:差\s*(?P<before>\d{{1,2}}|{HAN}{{1,3}})\s*(?P<unit>分钟?|刻)?(?:到)?)?"
    rf"\s*(?P<hour>\d{{1,2}}|{HAN}{{1,3}})\s*(?:点|點|时(?!间))(?P<full>[钟鐘整])?"
    rf"\s*(?:(?P<half>半)|(?P<quarter>[一三1-3])刻|(?P<behind>差)\s*(?P<to>\d{{1,2}}|{HAN}{{1,3}})\s*(?P<to_unit>分钟?|刻)"
    rf"|(?:过\s*|零(?=\d))?(?P<minute>\d{{1,2}}|{HAN}{{1,4}})\s*分?(?:\s*(?P<second>\d{{1,2}}|{HAN}{{1,3}})\s*秒)?)?"
)
_ALONE = Pattern(
    r"(\d{1,2})[\s-](\d{2})|(0\d|1\d|2[0-3])([0-5]\d)(?:\s*(?:hours|hrs|h)\b)|(0\d)([0-5]\d)", re.IGNORECASE
)
_NEGATION = Pattern(NEGATION, re.IGNORECASE)
_BOUND_BEFORE = Pattern(rf"{BOUND}\s*$", re.IGNORECASE)
_SENTENCE_END = Pattern(r"(?<=[!?])\s+|(?<=\d\.)\s+|(?<=[^.\s]{3}\.)\s+")  # `p.m.` ends none
_NOT_BEHIND = Pattern(
    rf"^(?:{BOUND_BEHIND}|[\s,]*(?:is|are|was|were)?\s*(?:not\b|wrong\b|incorrect\b|false\b|n['’]t)|\s*不)|\bgive\s+or\s+take\b",
    re.IGNORECASE,
)
_ANOTHER = Pattern(rf"\d|\b(?:{WORD}|noon|midday|midnight|quarter|half|o['`]?clock)\b|{HAN}\s*[点點分]", re.IGNORECASE)
_SAYS = Pattern(r"\b(?:time|clock|watch)\b[^,.;:\d]{0,40}?\b(?:is|reads|says|shows?|indicates?)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Time:
    seconds: int
    """Since midnight; since midnight or noon where the half of the day is open."""
    has_seconds: bool
    has_half: bool
    """The half of the day is known."""


@with_options
def clock_time(*, tolerance: float = 0.0) -> Verifier:
    """Makes a verifier of a time of day, read off a clock.

    The final answer must state one time and no other number: `10:09`, `10:09:30`, `10.09 pm`, `22h09`, `0915`, `9 am`,
    `9 o'clock`, `nine fifteen`, `quarter past three`, `ten to 4`, `twenty-five past seven`, `noon`, `9点15分`, `下午三点一刻`.
    A reason may stand before it (`The hour hand is past 10, so it is 10:09`). Bounds (`before 10:09`), ranges and negations are no
    times.

    A dial does not show the half of the day. It is compared only where both sides state it: by am and pm, by an hour of 0 or
    above 12, or by name. Seconds are compared where the reference has them.

    `prompt.answer` is such a time.

    Args:
        tolerance: Minutes that the time may be off, the shorter way round the dial.

    Returns:
        The verifier: 1.0 or 0.0, `UNREAD` where the response has no time; a `Score` with an error where the answer is none.

    Raises:
        ValueError: The tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance of clock_time must be >= 0 minutes, got {tolerance}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        wanted = _reference(str(prompt.answer))
        if wanted is None:
            return unreadable("clock_time", prompt, "give a time such as 10:09, 10:09:30 or 10:09 pm")
        text = plain_quantities(final_answer(answer_part(completion)))
        found = _stated(text)
        if found is None:
            return 0.0 if _has_time(text) else UNREAD
        return float(_difference(found, wanted) <= 60 * tolerance)

    return verify


@lru_cache(maxsize=1024)  # a group of completions has one reference
def _reference(text: str) -> _Time | None:
    return _one_time(plain_quantities(text))


def _has_time(text: str) -> bool:
    return bool(
        _TIME.search(text) or _ALONE.fullmatch(text.strip(" .")) or (not text.isascii() and _CHINESE.search(text))
    )


def _stated(text: str) -> _Time | None:
    """Returns the time that an answer states: all of it, what stands behind `so`, or its last sentence."""
    if (found := _one_time(text)) is not None:
        return found
    last = _SENTENCE_END.split(text)[-1]
    parts = dict.fromkeys((result_of(text), behind_reasons(text), _SAYS.split(text)[-1], result_of(last)))
    return next(filter(None, map(_one_time, parts)), None)


def _difference(found: _Time, wanted: _Time) -> int:
    """Returns the seconds between two times, the shorter way round."""
    seconds = found.seconds if wanted.has_seconds else found.seconds - found.seconds % 60
    round_trip = DAY if found.has_half and wanted.has_half else DAY // 2
    apart = (seconds - wanted.seconds) % round_trip
    return min(apart, round_trip - apart)


def _one_time(text: str) -> _Time | None:
    """Returns the only time in a text from `plain_quantities`.

    It is `None` if there is none, a second one, another number, or it is taken back.
    """
    if not text.isascii():
        text = _CHINESE.sub(_western, text)
    if alone := _ALONE.fullmatch(text.strip(" .")):
        text = ":".join(part for part in alone.groups() if part)
    matches = list(_TIME.finditer(text))
    time = _same([_time(match) for match in matches])
    if time is None or _NEGATION.search(text[: matches[-1].start()]):
        return None
    if any(_BOUND_BEFORE.search(text, max(0, match.start() - 40), match.start()) for match in matches):
        return None
    if _NOT_BEHIND.search(text[matches[-1].end() :]) or _ANOTHER.search(_TIME.sub(" ", text)):
        return None
    return time


def _same(times: list[_Time | None]) -> _Time | None:
    """Returns the time that all are, such as `4:35 (or 16:35)`; `None` if one is impossible or differs."""
    with_half = [time for time in times if time and time.has_half] or times
    if None in times or len(set(with_half)) != 1 or with_half[0] is None:
        return None
    known = with_half[0]
    same = all(time and _difference(time, known) == 0 and time.has_seconds == known.has_seconds for time in times)
    return known if same else None


def _western(match: re.Match[str]) -> str:
    """Returns a Chinese time in digits: `下午9点15分` as ` 9:15 pm `; as it is where its numbers are none."""
    hour = _han_number(match["hour"])
    quarters = {"一": 1, "二": 2, "三": 3}.get(match["quarter"] or "", match["quarter"])
    to, unit = match["before"] or match["to"], match["unit"] or match["to_unit"] or ""
    minute = 30 if match["half"] else 15 * int(quarters) if quarters else _han_number(match["minute"] or to or "0")
    if hour is None or minute is None or (to and match["before"] and (match["minute"] or match["half"] or quarters)):
        return match.group()
    if to:
        minute = (60 - minute * (15 if unit == "刻" else 1)) % 60
        hour = (hour - 2) % 12 + 1 if 1 <= hour <= 12 else hour - 1
    second = f":{_han_number(match['second']):02}" if match["second"] else ""
    half = ""
    if match["part"] and 1 <= hour <= 12:
        half = " am" if match["part"] in ("凌晨", "清晨", "早上", "早晨", "上午") else " pm"
        if match["part"] not in ("下午", "傍晚", "中午") and half == " pm" and (hour == 12 or hour < 6):
            half = " am"  # one at night
    return f" {hour}:{minute:02}{second}{half} "


def _han_number(numeral: str) -> int | None:
    return int(numeral) if numeral.isdecimal() else number_of_han(numeral.removeprefix("零") or "零")


def _time(match: re.Match[str]) -> _Time | None:
    """Returns the time of a match; `None` for an impossible time."""
    name = match["name"] or match["name_of"]
    if name:
        hour = 0 if name.casefold() == "midnight" else 12
    else:
        said = ("hour", "of", "full", "hour_word", "bare", "exact")
        hour = _number(next(match[group] for group in said if match[group]))
    minute, second, is_late = _minute(match), int(match["second"] or 0), _is_late(match, hour)
    if minute is None or hour > 23 or abs(minute) > 59 or second > 59 or (is_late is not None and not 1 <= hour <= 12):
        return None
    has_half = bool(name) or is_late is not None or not 1 <= hour <= 12
    hour = hour if is_late is None else hour % 12 + 12 * is_late
    seconds = (3600 * hour + 60 * minute + second) % DAY
    return _Time(seconds=seconds, has_seconds=match["second"] is not None, has_half=has_half)


def _is_late(match: re.Match[str], hour: int) -> bool | None:
    """Returns whether the time is after noon; `None` where the text leaves it open."""
    if match["half"]:
        return match["half"] in "pP"
    part = (match["part"] or "").casefold()
    if part == "night":
        return 6 <= hour <= 11
    return part != "morning" if part else None


def _minute(match: re.Match[str]) -> int | None:
    """Returns the minutes past the hour, negative for minutes to it; `None` for `ten of three`, which may be a share."""
    if match["minute_word"]:
        return _number(re.sub(r"^(?:oh|o|zero)[-\s]", "", match["minute_word"], flags=re.IGNORECASE))
    if not match["way"]:
        return int(match["minute"] or 0)
    way = match["way"].casefold()
    if way == "of" and not match["share"]:
        return None
    minute = {"quarter": 15, "half": 30}[match["share"].casefold()] if match["share"] else _number(match["minutes"])
    return (30 if match["half_past"] else 0) + (minute if way in ("past", "after") else -minute)


def _number(word: str) -> int:
    """Returns the number of digits or a `WORD`."""
    return int(word) if word.isdecimal() else number_of_words(word) or 0
