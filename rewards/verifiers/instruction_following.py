"""Instructions whose fulfilment can be counted: lengths, keywords, case, language, lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from rewards.text.answer_text import after_thinking, normalised
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
"""What `prompt.columns["instructions"]` may ask: name → (the response, the value asked for) → whether it is fulfilled."""


@with_options
def instruction_following(*, partial: bool = False) -> Verifier:
    """Makes a verifier of what a prompt's column `instructions` asks: `{"max_words": 50, "keywords": ["red"], "bullets": 3}`.

    Thoughts do not count. Words are what blanks divide; keywords are found as whole words, whatever their case.

    Args:
        partial: Whether the reward is the share of instructions that are fulfilled; else all have to be.

    Returns:
        The verifier: from 0.0 to 1.0, with each instruction in `Score.parts`; an empty response has 0.0. A `Score` with an error
        where the column is missing, or asks something else than `INSTRUCTIONS` has.
    """

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        asked = prompt.columns.get("instructions")
        if not isinstance(asked, Mapping) or not asked or not asked.keys() <= INSTRUCTIONS.keys():
            told = f"instruction_following cannot read the column 'instructions' of prompt {prompt.id!r}, {asked!r}"
            return Score(reward=0.0, error=f"{told}; give a mapping with some of {', '.join(INSTRUCTIONS)}")
        text = after_thinking(completion.text).strip()
        is_answer = 0 < len(text) <= LONGEST
        try:
            parts = {name: float(is_answer and INSTRUCTIONS[name](text, value)) for name, value in asked.items()}
        except (TypeError, KeyError, AttributeError) as error:
            told = f"prompt {prompt.id!r} has an instruction whose value does not fit its name: {dict(asked)!r}"
            return Score(reward=0.0, error=f"{told} ({type(error).__name__}: {error})")
        share = sum(parts.values()) / len(parts)
        return Score(reward=share if partial else float(share == 1), parts=parts)

    return verify
