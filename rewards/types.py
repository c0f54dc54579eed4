"""What a verifier returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from rollout.types import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The verdict on one completion.

    Attributes:
        reward: The number that the policy is trained on.
        parts: Named components, for metrics: `{"accuracy": 1.0, "format": 0.5}`.
        error: Why no verdict could be reached; the reward is then 0 and the completion is left out of training.
    """

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


Verifier: TypeAlias = Callable[[Prompt, Completion], float | Score]
"""A reward: any function of a prompt and a completion."""
