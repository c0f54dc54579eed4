"""The strictest verifier: the response equals the answer and has nothing else."""

from __future__ import annotations

from rewards.text.answer_text import normalised
from rewards.types import UNREAD, Score
from rollout.types import Completion, Prompt


def exact(prompt: Prompt, completion: Completion) -> float | Score:
    """Rewards a response whose whole text equals `prompt.answer`.

    Case and white space do not count: `" Dark  Blue\\n"` equals `"dark blue"`. Everything else does: `"17."` is not `"17"`. An
    answer that is not text is converted by `str`.

    Returns:
        1.0 or 0.0, `UNREAD` for an empty response; a `Score` with an error where the prompt has no answer.
    """
    if prompt.answer is None:
        return Score(reward=0.0, error=f"exact needs an answer, and prompt {prompt.id!r} has none")
    if not completion.text.strip() and str(prompt.answer).strip():
        return UNREAD
    return float(normalised(completion.text) == normalised(str(prompt.answer)))
