"""Penalty for responses near the limit of length."""

from __future__ import annotations

from rewards.types import Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt, sampled_mask


@with_options
def length_penalty(*, max_tokens: int = 20480, buffer: int = 4096) -> Verifier:
    """Makes DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), to be added to a reward by `weighted`.

    It is 0 up to `max_tokens − buffer` tokens, falls linearly to −1 at `max_tokens`, and is −1 beyond. In an episode, only tokens
    of the policy count.

    Args:
        max_tokens: `rollout.max_tokens` of the run; default: DAPO's.
        buffer: Tokens before `max_tokens` over which the penalty grows.

    Returns:
        The verifier: from −1.0 to 0.0; an empty response has 0.

    Raises:
        ValueError: `buffer` is not from 1 to `max_tokens`.
    """
    if not 1 <= buffer <= max_tokens:
        raise ValueError(f"buffer of length_penalty must be from 1 to max_tokens = {max_tokens}, got {buffer}")

    def verify(prompt: Prompt, completion: Completion) -> float:
        num_tokens = int(sampled_mask(completion).sum())
        return -min(1.0, max(0.0, (num_tokens - (max_tokens - buffer)) / buffer))

    return verify
