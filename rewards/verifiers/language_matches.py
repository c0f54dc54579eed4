"""Language of a response: the same as the prompt's."""

from __future__ import annotations

from rewards.text.languages import (
    foreign_alphabets,
    foreign_share,
    known_language,
    possible_languages,
    prose_of,
    without_quotations,
)
from rewards.text.patterns import Pattern
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

_LETTERS_WITHOUT_BLANKS = Pattern(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@with_options
def language_matches(*, tolerated: float = 0.05) -> Verifier:
    """Makes a verifier of Qwen3-VL's language rule: the response, thoughts included, is in the prompt's language.

    The prompt's language is its column `language` (`"en"`, `"en-GB"` or `"English"`), else that of its last user message. A short
    message may be in one of several related languages, of which each is right. Where it is too short even for that, only the
    alphabet counts. Formulas, programs, tags, numbers, links and quotations have no language, but sentences inside formulas and
    programs do. The response is checked piece by piece, so a change of language half-way fails.

    Args:
        tolerated: The share of the response that may be in another language or alphabet: names and quotations.

    Returns:
        The verifier: 1.0 or 0.0; a response without letters, or as short as a name, has 1.0, an empty one `UNREAD`. It checks only
        the language: right and wrong answers earn the same. A `Score` with an error where the column names no known language.

    Raises:
        ValueError: `tolerated` is not in [0, 1).
    """
    if not 0 <= tolerated < 1:
        raise ValueError(f"tolerated of language_matches must be >= 0 and < 1, got {tolerated}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        given = prompt.columns.get("language")
        try:
            language = None if given is None else known_language(given)
        except ValueError as error:
            return Score(
                reward=0.0, error=f"language_matches cannot read the column 'language' of prompt {prompt.id!r}: {error}"
            )
        if not completion.text.strip():
            return UNREAD
        question = prose_of(_question(prompt))
        prose = without_quotations(prose_of(completion.text))
        if _is_name(prose):
            return 1.0
        is_asked = language is None or language in possible_languages(question)
        if is_asked and foreign_alphabets(prose, question) > tolerated:
            return 0.0
        languages = possible_languages(question) if language is None else language
        if not languages:
            return 1.0
        return float(foreign_share(prose, languages) <= tolerated)

    return verify


def _is_name(prose: str) -> bool:
    """Returns whether a response is as short as the name on a sign, which may be in any language."""
    return len(prose.split()) < 3 and len(_LETTERS_WITHOUT_BLANKS.findall(prose)) <= 5


def _question(prompt: Prompt) -> str:
    contents = [message["content"] for message in prompt.messages if message["role"] == "user"]
    content = contents[-1] if contents else ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
