"""Language of a response: the same as the prompt's."""

from __future__ import annotations

import re

from rewards.text.languages import SURE, foreign_alphabets, is_in, likely_languages, prose_of
from rewards.types import Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

PIECE = 24  # characters of a piece of a response; the language of shorter ones cannot be identified


@with_options
def language_matches(*, tolerated: float = 0.05) -> Verifier:
    """Makes a verifier of Qwen3-VL's language rule: the response, thoughts included, is in the prompt's language.

    The prompt's language is its column `language` (`"en"`), else that of its last user message. Where that message is too short
    to identify a language, only the alphabet counts. Formulas, programs, tags, numbers and links have no language. The response
    is checked piece by piece, so a change of language half-way fails.

    Args:
        tolerated: The share of the response that may be in another language or alphabet: names and quotations.

    Returns:
        The verifier: 1.0 or 0.0; a response without letters has 1.0, an empty one 0.0. It checks only the language: right and
        wrong answers earn the same.

    Raises:
        ValueError: `tolerated` is not in [0, 1).
    """
    if not 0 <= tolerated < 1:
        raise ValueError(f"tolerated of language_matches must be >= 0 and < 1, got {tolerated}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        question = prose_of(_question(prompt))
        prose = prose_of(completion.text)
        if not completion.text.strip():
            return 0.0
        language = prompt.columns.get("language") or _sure_language(question)
        if foreign_alphabets(prose, question) > tolerated:
            return 0.0
        if language is None:
            return 1.0
        pieces = _pieces(prose)
        foreign = sum(len(piece) for piece in pieces if not is_in(piece, language))
        return float(foreign <= tolerated * sum(map(len, pieces)))

    return verify


def _question(prompt: Prompt) -> str:
    contents = [message["content"] for message in prompt.messages if message["role"] == "user"]
    content = contents[-1] if contents else ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _sure_language(prose: str) -> str | None:
    language, probability = next(iter(likely_languages(prose).items()), (None, 0.0))
    return language if probability >= SURE else None


def _pieces(prose: str) -> list[str]:
    """Splits prose after sentences and lines, into pieces that are long enough to identify their language."""
    pieces = [""]
    for sentence in re.split(r"(?<=[.!?。！？\n])\s*", prose):
        pieces[-1] += f" {sentence}"
        if len(pieces[-1]) >= PIECE:
            pieces.append("")
    if len(pieces) > 1 and len(pieces[-1]) < PIECE:
        rest = pieces.pop()
        pieces[-1] += rest
    return pieces
