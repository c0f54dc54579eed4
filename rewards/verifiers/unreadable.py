"""The score of a prompt with an unreadable reference."""

from __future__ import annotations

from rewards.types import Score
from rollout.types import Prompt


def unreadable(verifier: str, prompt: Prompt, remedy: str) -> Score:
    """Returns a score with an error that names verifier, answer, prompt and a remedy."""
    message = f"{verifier} cannot read the answer {prompt.answer!r:.200} of prompt {prompt.id!r}"
    return Score(reward=0.0, error=f"{message}; {remedy}")
