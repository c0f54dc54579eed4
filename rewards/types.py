"""What a verifier returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
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
        failed: The name of the verifier that reached none, behind those of the parts that it stands in: `"format/judge"`.
    """

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    failed: str | None = None


Verifier: TypeAlias = Callable[[Prompt, Completion], float | Score | Awaitable[float | Score]]
"""A reward: any function of a prompt and a completion, `async` or not."""
GroupFunction: TypeAlias = Callable[[Prompt, Sequence[Completion]], Sequence[float | Score]]
"""One that sees all completions of a prompt at once; `of_group` makes a verifier of it."""
