"""How many there are."""

from __future__ import annotations

import re

from rewards.answer_text import final_answer, plain_digits
from rewards.options import with_options
from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt

_ONES = "one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
WORDS = {word: number for number, word in enumerate(["zero", *_ONES, *_TEENS])}
_TENS = {
    word: 10 * number for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
_HAN = {digit: number for number, digit in enumerate("零一二三四五六七八九")} | {"两": 2}
_NUMBER = re.compile(
    r"(?<![\d.])(?<!\d,)(?P<digits>[-−]?(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?))(?![.,]?\d)"
    rf"|\b(?P<tens>{'|'.join(_TENS)})(?:[- ](?P<one>{'|'.join(_ONES)}))?\b"
    rf"|\b(?P<word>{'|'.join(sorted(WORDS, key=len, reverse=True))})\b|(?P<han>[{''.join(_HAN)}十]+)",
    re.IGNORECASE,
)


@with_options
def count(*, tolerance: int = 0) -> Verifier:
    """Makes a verifier of a whole number: how many there are.

    The final answer must hold one number and no other: in digits of any script (`1,204`), as an English word up to ninety-nine, or
    as a Chinese one up to 九十九. `There are 5 dogs.` is 5, `3 or 4` and `3 of the 5` are nothing.

    `prompt.answer` is a whole number, or its digits.

    Args:
        tolerance: A count that is off by n ≤ tolerance has 1 − n / (tolerance + 1).

    Returns:
        The verifier: from 0.0 to 1.0; a `Score` with an error where the answer is no whole number >= 0.

    Raises:
        ValueError: The tolerance is negative.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance of count must be >= 0, got {tolerance}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        wanted = _one_number(str(prompt.answer))
        if wanted is None:
            told = f"count cannot read the answer {prompt.answer!r} of prompt {prompt.id!r}"
            return Score(reward=0.0, error=f"{told}; give a whole number >= 0")
        found = _one_number(final_answer(completion.text))
        return 0.0 if found is None else max(0.0, 1 - abs(found - wanted) / (tolerance + 1))

    return verify


def _one_number(text: str) -> int | None:
    """Returns the only number in a text, `None` where there are none or several, or it is not whole, or negative."""
    numbers = {_value(match) for match in _NUMBER.finditer(plain_digits(text))}
    return numbers.pop() if len(numbers) == 1 else None


def _value(match: re.Match[str]) -> int | None:
    if digits := match["digits"]:
        whole, _, decimals = digits.replace(",", "").partition(".")
        return int(whole) if len(whole) <= 18 and whole[0] not in "-−" and not decimals.strip("0") else None
    if tens := match["tens"]:
        return _TENS[tens.casefold()] + (WORDS[match["one"].casefold()] if match["one"] else 0)
    if word := match["word"]:
        return WORDS[word.casefold()]
    tens, ten, ones = match["han"].partition("十")
    if len(tens) > 1 or len(ones) > 1:
        return None
    return (10 * _HAN.get(tens, 1) if ten else _HAN[tens]) + _HAN.get(ones, 0)
