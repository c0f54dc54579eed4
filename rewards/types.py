"""Scores and the types of verifiers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rollout.types import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score of one completion."""

    reward: float
    """The number that the policy is trained on."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components, for metrics: `{"accuracy": 1.0, "format": 0.5}`."""
    error: str | None = None
    """The reason why there is no verdict; the reward is then 0, and the completion is left out of training."""
    failed: str | None = None
    """The verifier that failed, with the parts that contain it in front: `"format/judge"`."""
    timeout: str | None = None
    """The message of a call that took too long. The response counts as wrong: its reward is 0, or the lowest of its group if that
    is less."""
    unread: bool = field(default=False, repr=False)
    """The verifier found no answer in the response, which counts as wrong."""

    @property
    def problem(self) -> str | None:
        """The reason why the verifier has not returned this score itself; `None` if it has."""
        return self.error or self.timeout


class Unread(float):
    """The reward of a response in which a verifier finds no answer: a number, so that a user's reward may add and scale it."""


UNREAD = Unread(0.0)

Verifier: TypeAlias = Callable[[Prompt, Completion], float | Score | Awaitable[float | Score]]
"""A reward: any function of a prompt and a completion, `async` or not."""
GroupFunction: TypeAlias = Callable[[Prompt, Sequence[Completion]], Sequence[float | Score]]
"""A function that scores all completions of a prompt in one call; `of_group` makes a verifier of it."""
