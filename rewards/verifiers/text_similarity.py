"""Text read off a picture, compared by edit distance."""

from __future__ import annotations

from rewards.text.answer_text import answer_part, normalised, short_answer_or_all
from rewards.text.unreadable import unreadable
from rewards.types import Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt


@with_options
def text_similarity(*, threshold: float = 0.5) -> Verifier:
    r"""Makes a verifier that rewards text by its similarity to the reference.

    The reward is 1 − Levenshtein distance / length of the longer text, and 0 below `threshold`: ANLS (arXiv 1905.13648), with its
    usual threshold. Case and white space do not count. The text is the last `\boxed{...}` or `<answer>...</answer>`, else all of
    the response after its thoughts, where further words reduce the similarity.

    `prompt.answer` is the text, or a list of texts; the most similar one counts.

    Args:
        threshold: Similarities below it count as 0; random text stays below 0.5 of all but the shortest references.

    Returns:
        The verifier: from 0.0 to 1.0; a `Score` with an error where the prompt has no text to compare with.

    Raises:
        ValueError: The threshold is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold of text_similarity must be from 0 to 1, got {threshold}")

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        from rapidfuzz.distance import Levenshtein

        given = [prompt.answer] if isinstance(prompt.answer, str) else prompt.answer
        references = (
            [normalised(text) for text in given if isinstance(text, str)] if isinstance(given, list | tuple) else []
        )
        if not any(references):
            return unreadable("text_similarity", prompt, "give a text or a list of texts")
        # A text that is cut here is less than 1 % similar.
        text = normalised(short_answer_or_all(answer_part(completion))[: 100 * max(map(len, references))])
        best = max(Levenshtein.normalized_similarity(text, reference) for reference in references if reference)
        return float(best) if text and best >= threshold else 0.0

    return verify
