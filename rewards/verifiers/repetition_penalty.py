"""Penalty for repetition."""

from __future__ import annotations

from rewards.text.patterns import Pattern
from rewards.types import Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

READ = 50_000  # characters that are read from the end, where loops are

# Units: words of up to 24 characters, single letters of scripts without blanks, and up to 4 punctuation marks.
_UNIT = Pattern(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,24}|[^\w\s]{1,4}"
)


@with_options
def repetition_penalty(*, ngram: int = 4, allowed: float = 0.2, most: float = 1.0) -> Verifier:
    """Makes a penalty for repeated n-grams of words, to be added to a reward by `weighted`.

    The penalty is −most · max(0, (s − allowed) / (1 − allowed)), with s the share of the response's n-grams that repeat an
    earlier one. Ordinary prose has s below 0.1, a worked solution below 0.2, and a loop soon above 0.9. Thoughts count.

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
        words = _UNIT.findall(completion.text[-READ:].casefold())
        total = len(words) - ngram + 1
        if total < 1:
            return 0.0
        repeated = 1 - len({tuple(words[i : i + ngram]) for i in range(total)}) / total
        return -most * max(0.0, (repeated - allowed) / (1 - allowed))

    return verify
