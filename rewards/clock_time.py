"""What a clock says."""

from __future__ import annotations

import re

from rewards.answer_text import final_answer, plain_digits
from rewards.count import WORDS
from rewards.options import with_options
from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt

_WORD = rf"\d{{1,2}}|twenty[- ]five|{'|'.join(sorted(WORDS, key=len, reverse=True))}|twenty"
_TIME = re.compile(
    rf"(?<![\d:.])(?P<hour>\d{{1,2}})\s?[:.h]\s?(?P<minute>\d{{2}})(?:[:.](?P<second>\d{{2}}))?(?![\d:])"
    rf"|\b(?:(?P<part>a?\s?quarter|half)|(?P<minutes>{_WORD})(?:\s+minutes?)?)\s+(?P<way>past|after|to|before)\s+(?P<of>{_WORD})\b"
    rf"|\b(?P<full>{_WORD})\s*o['’]?clock\b|\b(?P<bare>\d{{1,2}})(?=\s*[ap]\.?m\b)|\b(?P<name>noon|midday|midnight)\b",
    re.IGNORECASE,
)
_HALF_DAY = re.compile(r"\s*([ap])\.?\s?m\b", re.IGNORECASE)
HALF_DAY = 12 * 3600  # seconds


@with_options
def clock_time(*, tolerance: float = 0.0) -> Verifier:
    """Makes a verifier of a time of day, as read off a clock.

    The final answer must hold one time and no other: `10:09`, `10:09:30`, `10.09 pm`, `22h09`, `quarter past three`, `ten to four`,
    `9 o'clock`, `noon`. A dial does not show which half of the day it is: that counts only where both sides say it, by am and pm or
    by an hour of 0 or above 12. Seconds count only where the reference has some.

    `prompt.answer` is such a time.

    Args:
        tolerance: Minutes that the time may be off.

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
            told = f"clock_time cannot read the answer {prompt.answer!r} of prompt {prompt.id!r}"
            return Score(reward=0.0, error=f"{told}; give a time such as 10:09")
        found = _one_time(final_answer(completion.text))
        return float(found is not None and _difference(found, wanted) <= 60 * tolerance)

    return verify


def _difference(found: tuple[int, bool], wanted: tuple[int, bool]) -> int:
    """Returns seconds between two times, the short way round."""
    seconds = found[0] if wanted[0] % 60 else found[0] - found[0] % 60
    whole = 2 * HALF_DAY if found[1] and wanted[1] else HALF_DAY
    apart = (seconds - wanted[0]) % whole
    return min(apart, whole - apart)


def _one_time(text: str) -> tuple[int, bool] | None:
    """Returns the only time in a text, in seconds, and whether it says which half of the day it is; `None` for none or several."""
    text = plain_digits(text)
    times = {_seconds(match, _HALF_DAY.match(text, match.end())) for match in _TIME.finditer(text)}
    return times.pop() if len(times) == 1 else None


def _seconds(match: re.Match[str], half: re.Match[str] | None) -> tuple[int, bool] | None:
    if name := match["name"]:
        return (0 if name.casefold() == "midnight" else HALF_DAY), True
    if way := match["way"]:
        part = (match["part"] or "").casefold()
        minutes = 30 if part == "half" else 15 if part else _number(match["minutes"])
        hour, minute = _number(match["of"]), minutes if way.casefold() in ("past", "after") else -minutes
    else:
        hour, minute = _number(match["hour"] or match["full"] or match["bare"]), int(match["minute"] or 0)
    second = int(match["second"] or 0)
    if not 0 <= hour < 24 or not abs(minute) < 60 or second >= 60 or (half and not 1 <= hour <= 12):
        return None
    if half:
        hour = hour % 12 + (12 if half[1].casefold() == "p" else 0)
    says_half = bool(half) or hour > 12 or hour == 0
    return (3600 * hour + 60 * minute + second) % (2 * HALF_DAY), says_half


def _number(word: str) -> int:
    word = word.casefold().replace("-", " ")
    return int(word) if word.isdecimal() else 25 if word == "twenty five" else WORDS.get(word, 20)
