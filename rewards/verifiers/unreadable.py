"""What a verifier says of a reference that it cannot read."""

from __future__ import annotations

from rewards.types import Score
from rollout.types import Prompt


def unreadable(verifier: str, prompt: Prompt, remedy: str) -> Score:
    """Returns the score that names the verifier, the answer and the prompt, and says what to give instead."""
    told = f"{verifier} cannot read the answer {prompt.answer!r:.200} of prompt {prompt.id!r}"
    return Score(reward=0.0, error=f"{told}; {remedy}")
