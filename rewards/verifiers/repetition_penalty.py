"""Penalty for repetition."""

from __future__ import annotations

import re

from rewards.text.patterns import Pattern
from rewards.types import Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

READ = 50_000  # characters that are read from the end, where loops are

# Words of up to 24 characters, and single letters of scripts without blanks.
_WORD = Pattern(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,24}|\ue000\d{1,20}"
)
_UNIT = Pattern(  # marks, too, up to 4 together
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,24}|[^\w\s]{1,4}"
)
# Objects of JSON and rows of tables: they share keys and marks, and repeat only if they are the same.
_RECORD = Pattern(
    r"\{[^{}]{1,500}\}|^[ \t]*\|[^\n]{1,600}\|[ \t]*$|<tr\b.{1,600}?</tr>", re.MULTILINE | re.DOTALL | re.IGNORECASE
)
_RULE = frozenset("|:=+_*~-# \t─━═│┃┼├┤┬┴┌┐└┘╔╗╚╝║╬╪╞╡–—")  # marks of a line between parts or rows
LONGEST_RULE = 400  # characters
_TAG = Pattern(r"</?[a-z][^<>\n]{0,100}>")


@with_options
def repetition_penalty(*, ngram: int = 4, allowed: float = 0.2, most: float = 1.0) -> Verifier:
    """Makes a penalty for repeated n-grams of words, to be added to a reward by `weighted`.

    The penalty is −most · max(0, (s − allowed) / (1 − allowed)), with s the share of the response's n-grams that repeat an
    earlier one. Ordinary prose has s below 0.1, a worked solution below 0.2, and a loop soon above 0.9. Thoughts count. An
    object of JSON or a row of a table counts as one word, and marks count only where there are hardly any words.

    Args:
        ngram: Words of an n-gram; in Chinese, Japanese and Korean, each letter counts as a word.
        allowed: The share without a penalty.
        most: The penalty of a response that only repeats.

    Returns:
        The verifier: from `−most` to 0.0; a response shorter than an n-gram has 0.

    Raises:
        ValueError: `ngram` is below 1, `allowed` not in [0, 1), or `most` negative.
    """
    if ngram < 1:
        raise ValueError(f"ngram of repetition_penalty must be >= 1, got {ngram}")
    if not 0 <= allowed < 1:
        raise ValueError(f"allowed of repetition_penalty must be >= 0 and < 1, got {allowed}")
    if not most >= 0:
        raise ValueError(f"most of repetition_penalty must be >= 0, got {most}; the sign is added to it")

    def verify(prompt: Prompt, completion: Completion) -> float:
        words = _units(completion.text[-READ:].casefold())
        total = len(words) - ngram + 1
        if total < 1:
            return 0.0
        repeated = 1 - len({tuple(words[i : i + ngram]) for i in range(total)}) / total
        return -most * max(0.0, (repeated - allowed) / (1 - allowed))

    return verify


def _units(text: str) -> list[str]:
    """Returns the words of a text, each record as one of them; with the marks, where these are nearly all of the text."""
    numbers: dict[str, int] = {}

    def as_word(record: re.Match[str]) -> str:
        plain = " ".join(record.group().split())
        return f" \ue000{numbers.setdefault(plain, len(numbers))} " if any(map(str.isalnum, plain)) else " "

    text = _without_rules(text.replace("\ue000", ""))
    bare = _TAG.sub(" ", text)
    units = _UNIT.findall(bare)
    words = [unit for unit in units if unit[0].isalnum() or unit[0] == "_"]
    if not words or 10 * len(words) < len(units):
        return list(_UNIT.findall(text))
    short = _TAG.sub(" ", _RECORD.sub(as_word, text))
    return words if short == bare else list(_WORD.findall(short))


def _without_rules(text: str) -> str:
    """Returns the text without rules, but for those that follow one another."""
    lines = text.split("\n")
    return "\n".join(
        line for place, line in enumerate(lines) if not _is_rule(line) or (place and _is_rule(lines[place - 1]))
    )


def _is_rule(line: str) -> bool:
    return len(line) <= LONGEST_RULE and _RULE.issuperset(line)
