"""Instructions that a program can check: lengths, keywords, case, language, lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from rewards.text.answer_text import answer_part, normalised
from rewards.text.languages import is_in, prose_of
from rewards.text.patterns import Pattern
from rewards.types import Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

LONGEST = 200_000  # characters

_BULLET = Pattern(r"^[ \t]*[-*+•][ \t]+\S", re.MULTILINE)
_NUMBERED = Pattern(r"^[ \t]*\d{1,4}[.)][ \t]+\S", re.MULTILINE)
_SENTENCE_END = Pattern(r"[.!?](?=[\s\"')]|$)|[。！？]")


def _words(text: str) -> int:
    return len(text.split())


def _sentences(text: str) -> int:
    return len(_SENTENCE_END.findall(text))


def _paragraphs(text: str) -> int:
    return sum(bool(part.strip()) for part in re.split(r"\n[ \t]*\n", text))


def _times(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(normalised(word))}(?!\w)", normalised(text)))


INSTRUCTIONS: Mapping[str, Callable[[str, Any], bool]] = {
    "min_words": lambda text, least: _words(text) >= least,
    "max_words": lambda text, most: _words(text) <= most,
    "min_sentences": lambda text, least: _sentences(text) >= least,
    "max_sentences": lambda text, most: _sentences(text) <= most,
    "paragraphs": lambda text, number: _paragraphs(text) == number,
    "max_characters": lambda text, most: len(text) <= most,
    "keywords": lambda text, words: all(_times(text, word) for word in words),
    "forbidden": lambda text, words: not any(_times(text, word) for word in words),
    "keyword_counts": lambda text, counts: all(_times(text, word) == count for word, count in counts.items()),
    "case": lambda text, case: {"upper": text.upper(), "lower": text.lower()}[case] == text,
    "language": lambda text, language: is_in(prose_of(text), language),
    "bullets": lambda text, number: len(_BULLET.findall(text)) == number,
    "numbered": lambda text, number: len(_NUMBERED.findall(text)) == number,
    "starts_with": lambda text, start: text.startswith(start),
    "ends_with": lambda text, end: text.endswith(end),
    "no_commas": lambda text, is_asked: not is_asked or not re.search("[,，、]", text),
}
"""Checks by the names of `prompt.columns["instructions"]`: each maps the response and the value to True or False."""


@with_options
def instruction_following(*, partial: bool = False) -> Verifier:
    """Makes a verifier of a prompt's column `instructions`: `{"max_words": 50, "keywords": ["red"], "bullets": 3}`.

    Thoughts do not count. Blanks separate words; keywords are whole words in any case.

    Args:
        partial: Rewards the share of fulfilled instructions; else all must be fulfilled.

    Returns:
        The verifier: from 0.0 to 1.0, with each instruction in `Score.parts`; an empty response has 0.0. A `Score` with an error
        where the column is missing, or has a name that is not in `INSTRUCTIONS`.
    """

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        instructions = prompt.columns.get("instructions")
        if not isinstance(instructions, Mapping) or not instructions or not instructions.keys() <= INSTRUCTIONS.keys():
            message = (
                f"instruction_following cannot read the column 'instructions' of prompt {prompt.id!r}, {instructions!r}"
            )
            return Score(reward=0.0, error=f"{message}; give a mapping with some of {', '.join(INSTRUCTIONS)}")
        text = answer_part(completion).strip()
        is_answer = 0 < len(text) <= LONGEST
        try:
            parts = {name: float(is_answer and INSTRUCTIONS[name](text, value)) for name, value in instructions.items()}
        except (TypeError, KeyError, AttributeError) as error:
            message = (
                f"prompt {prompt.id!r} has an instruction whose value does not fit its name: {dict(instructions)!r}"
            )
            return Score(reward=0.0, error=f"{message} ({type(error).__name__}: {error})")
        share = sum(parts.values()) / len(parts)
        return Score(reward=share if partial else float(share == 1), parts=parts)

    return verify
