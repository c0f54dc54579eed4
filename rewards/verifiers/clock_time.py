"""Times of day, read off a clock."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.text.answer_text import answer_part, final_answer, plain_digits
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import Score, Verifier
from rewards.text.number_words import WORD, number_of_words
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

DAY = 24 * 3600  # seconds

_NUMBER = rf"(?:\d{{1,2}}(?!\d)|{WORD})"
_NAME = r"(?:12(?:[:.]00)?\s+)?(?P<%s>noon|midday|midnight)\b"
_HALF = r"(?:\s*(?P<half>[ap])\.?\s?m\b\.?|\s+in\s+the\s+(?P<part>morning|afternoon|evening)\b)"
_TIME = Pattern(
    rf"(?<![\w.:])(?:{_NAME % 'name'}"
    r"|(?P<hour>\d{1,2})(?:\s?[:：.]\s?|\s?h\s?)(?P<minute>\d{2})(?:[:：.](?P<second>\d{2}))?(?!\d)"
    rf"|(?:(?:a\s+)?(?P<share>quarter|half)|(?P<minutes>{_NUMBER})(?:\s+minutes?)?)\s+(?P<way>past|after|to|till?|before)"
    rf"\s+(?:{_NAME % 'name_of'}|(?P<of>{_NUMBER})\b(?:\s*o\s?['’`]?\s?clock\b)?)"
    rf"|(?P<full>{_NUMBER})\s*o\s?['’`]?\s?clock\b"
    rf"|(?P<bare>{_NUMBER})(?={_HALF.replace('?P<half>', '').replace('?P<part>', '')}))(?:{_HALF})?",
    re.IGNORECASE,
)
_NOT_BEFORE = Pattern(r"(?:\b(?:not|than|before|after|past)|n['’]t)\s+$", re.IGNORECASE)
_ANOTHER = Pattern(rf"\d|\b(?:{WORD}|noon|midday|midnight|quarter|half|o['’`]?clock)\b", re.IGNORECASE)


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

    The final answer must hold one time and no other number: `10:09`, `10:09:30`, `10.09 pm`, `22h09`, `9 am`, `9 o'clock`,
    `quarter past three`, `ten to 4`, `twenty-five past seven`, `noon`. A dial does not show the half of the day. It is compared
    only where both sides state it: by am and pm, by an hour of 0 or above 12, or by name. Seconds are compared where the
    reference has them.

    `prompt.answer` is such a time.

    Args:
        tolerance: Minutes that the time may be off, the shorter way round the dial.

    Returns:
        The verifier: 1.0 or 0.0; a `Score` with an error where the answer is no time.

    Raises:
        ValueError: The tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance of clock_time must be >= 0 minutes, got {tolerance}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        wanted = _one_time(str(prompt.answer))
        if wanted is None:
            return unreadable("clock_time", prompt, "give a time such as 10:09, 10:09:30 or 10:09 pm")
        found = _one_time(final_answer(answer_part(completion)))
        return float(found is not None and _difference(found, wanted) <= 60 * tolerance)

    return verify


def _difference(found: _Time, wanted: _Time) -> int:
    """Returns the seconds between two times, the shorter way round."""
    seconds = found.seconds if wanted.has_seconds else found.seconds - found.seconds % 60
    round_trip = DAY if found.has_half and wanted.has_half else DAY // 2
    apart = (seconds - wanted.seconds) % round_trip
    return min(apart, round_trip - apart)


def _one_time(text: str) -> _Time | None:
    """Returns the only time in a text; `None` if there is none, a second one, or another number."""
    text = plain_digits(text)
    matches = list(_TIME.finditer(text))
    times = {_time(match) for match in matches}
    if len(times) != 1 or any(_NOT_BEFORE.search(text, 0, match.start()) for match in matches):
        return None
    return None if _ANOTHER.search(_TIME.sub(" ", text)) else times.pop()


def _time(match: re.Match[str]) -> _Time | None:
    """Returns the time of a match; `None` for an impossible time."""
    name = match["name"] or match["name_of"]
    if name:
        hour = 0 if name.casefold() == "midnight" else 12
    else:
        hour = _number(match["hour"] or match["of"] or match["full"] or match["bare"])
    minute, second, is_late = _minute(match), int(match["second"] or 0), _is_late(match)
    if hour > 23 or abs(minute) > 59 or second > 59 or (is_late is not None and not 1 <= hour <= 12):
        return None
    has_half = bool(name) or is_late is not None or not 1 <= hour <= 12
    hour = hour if is_late is None else hour % 12 + 12 * is_late
    seconds = (3600 * hour + 60 * minute + second) % DAY
    return _Time(seconds=seconds, has_seconds=match["second"] is not None, has_half=has_half)


def _is_late(match: re.Match[str]) -> bool | None:
    """Returns whether the time is after noon; `None` where the text leaves it open."""
    if match["half"]:
        return match["half"] in "pP"
    return match["part"].casefold() != "morning" if match["part"] else None


def _minute(match: re.Match[str]) -> int:
    """Returns the minutes past the hour; negative for minutes to it."""
    if not match["way"]:
        return int(match["minute"] or 0)
    minute = {"quarter": 15, "half": 30}[match["share"].casefold()] if match["share"] else _number(match["minutes"])
    return minute if match["way"].casefold() in ("past", "after") else -minute


def _number(word: str) -> int:
    return int(word) if word.isdecimal() else number_of_words(word)
