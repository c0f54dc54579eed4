"""A trial of a reward on two made-up responses, before anything costly starts."""

from __future__ import annotations

import numpy as np

from rewards.workers.runner import RewardRunner
from rollout.types import Completion, Group, Prompt


def dry_run(runner: RewardRunner, prompt: Prompt) -> None:
    """Scores two made-up responses: the reference answer and an empty text.

    Raises:
        ValueError: The reward has no verdict on one of them. The message names the reward, the prompt, the place, and the
            exception or the bad value.
    """
    texts = ("" if prompt.answer is None else str(prompt.answer), "")
    completions = [fake_completion(text) for text in texts]
    group = Group(prompt=prompt, prompt_token_ids=np.zeros(1, np.int32), completions=completions)
    for text, score in zip(texts, runner.score([group])[0], strict=True):
        if score.problem is not None:
            raise ValueError(f"{score.problem}; this was a trial on the made-up response {text!r}, before the start")


def fake_completion(text: str) -> Completion:
    """Returns a completion with one token for each byte of the text, and an end token."""
    num_tokens = len(text.encode()) + 1
    return Completion(text=text, token_ids=np.zeros(num_tokens, np.int32), logprobs=np.zeros(num_tokens, np.float32))
