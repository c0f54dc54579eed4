"""Counts: a whole number, in digits or words."""

from __future__ import annotations

import re

from rewards.text.answer_text import answer_part, final_answer, plain_digits
from rewards.text.patterns import Pattern
from rewards.text.unreadable import unreadable
from rewards.types import Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
_ONES = {word: number for number, word in enumerate(_TO_NINETEEN)}
_TENS = {
    word: 10 * number for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
_HAN = {digit: number for number, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}

WORD = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(_TO_NINETEEN[1:10])})\b)?|(?:{'|'.join(reversed(_TO_NINETEEN))}))"
)
"""Matches a number word up to ninety-nine, for `number_of_word` to read."""

BOUND = r"(?:\b(?:not|than|least|most|over|under|up\s+to)\s+|n['’]t\s+|[<>≤≥≠±√]\s*|\\(?:[lg]eq?|neq?|pm)\s*)"
"""Matches words and signs that make the following number a bound: `at least`."""

_NO_NUMBER = Pattern(  # ordinals, and Chinese words that contain 一, such as 一共 "in total"
    rf"\d+(?:st|nd|rd|th)\b|第\s?[\d十{''.join(_HAN)}]+|一[共起些下样樣定般直旁边邊]|[唯统統]一", re.IGNORECASE
)
_WORK = Pattern(r"\d\s*(?:[-−–+*/×÷·x]|\\(?:times|cdot|div)\b)\s*[({]?\d|[\^²³¹⁰⁴-⁹]|\\(?:[dt]?frac|sqrt|binom)\b")
_NUMBER = Pattern(
    rf"(?P<bound>{BOUND})?(?:"
    r"(?<![a-z\d_])(?P<digits>[-−]?\d+(?:[.,:\u00a0\u202f]\d+)*)(?P<behind>\s?(?:%|°|percent\b)|[a-z+]|\s+or\s+(?:more|less|fewer)\b)?"
    rf"|\b(?P<word>{WORD})\b|(?P<han>[十百千万萬亿億半{''.join(_HAN)}]+)"
    r"|\b(?P<other>hundreds?|thousands?|millions?|billions?|dozens?|half|halves|thirds|quarters)\b)",
    re.IGNORECASE,
)
_WHOLE = Pattern(r"(\d{1,18}|[1-9]\d{0,2}(?:[,\u00a0\u202f]\d{3}){1,5})(?:\.0+)?")
_SENTENCE_END = Pattern(r"(?<=[.!?])\s+|(?<=[。！？])")


@with_options
def count(*, tolerance: int = 0) -> Verifier:
    """Makes a verifier of a count, which is a whole number.

    The final answer must hold one number and no other; if it has several, its last sentence must. The number may be in digits of
    any script (`1,204`), an English word up to ninety-nine, or a Chinese one up to 九十九. `There are 5 dogs.` is 5. `3 or 4`,
    `3 of the 5`, `more than 5`, `5%`, `2 + 3` and `-5` are no counts; ordinals (`the 2nd`) are ignored.

    `prompt.answer` is a whole number, as a number or in one of these forms.

    Args:
        tolerance: A count that is off by n ≤ tolerance earns 1 − n / (tolerance + 1), others earn nothing.

    Returns:
        The verifier: from 0.0 to 1.0; a `Score` with an error where the answer is no whole number >= 0.

    Raises:
        ValueError: The tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance of count must be >= 0, got {tolerance}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        wanted = _one_number(str(prompt.answer))
        if wanted is None:
            return unreadable("count", prompt, "give a whole number >= 0")
        answer = final_answer(answer_part(completion))
        found = _one_number(answer)
        if found is None:
            found = _one_number(_SENTENCE_END.split(answer.strip())[-1])
        return 0.0 if found is None else max(0.0, 1 - abs(found - wanted) / (tolerance + 1))

    return verify


def number_of_word(word: str) -> int:
    """Returns the number of a `WORD`: 25 for `Twenty-five`."""
    tens, _, ones = "-".join(word.casefold().split()).partition("-")
    return _TENS[tens] + _ONES.get(ones, 0) if tens in _TENS else _ONES[tens]


def _one_number(text: str) -> int | None:
    """Returns the only number in a text, repeated or not; `None` if there is none, a second one, or one that is not whole."""
    text = _NO_NUMBER.sub(" ", plain_digits(text))
    numbers = {_value(match) for match in _NUMBER.finditer(text)}
    return numbers.pop() if len(numbers) == 1 and not _WORK.search(text) else None


def _value(match: re.Match[str]) -> int | None:
    if match["bound"] or match["behind"] or match["other"]:
        return None
    if match["digits"]:
        whole = _WHOLE.fullmatch(match["digits"])
        return int(re.sub(r"\D", "", whole[1])) if whole else None
    return number_of_word(match["word"]) if match["word"] else _of_han(match["han"])


def _of_han(numeral: str) -> int | None:
    """Returns the number of a Chinese numeral up to 九十九; `None` for any other."""
    tens, ten, ones = numeral.partition("十")
    if not ten:
        return _HAN.get(numeral)
    values = _HAN.get(tens or "一"), _HAN.get(ones or "零")
    return 10 * values[0] + values[1] if values[0] and values[1] is not None else None
