"""Adapter for reward functions written for TRL."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from rewards.types import Verifier
from rewards.workers.call import OfGroup, awaited, reward_name
from rollout.types import Completion, Prompt


def from_trl(function: Callable[..., Any], *, conversational: bool = True) -> Verifier:
    """Makes a verifier of a TRL reward function: `(prompts, completions, **columns) -> list of numbers`, `async` or not.

    One call gets all completions of one prompt, where TRL passes a whole batch. It passes `prompts`, `completions`,
    `completion_ids` (token ids), `images`, `answer`, `task` and every dataset column, each as a list with one entry a
    completion. The function gets those that it names, or all if it takes `**kwargs`. A column replaces a field of the same
    name. `None` instead of a number counts as 0, as in TRL's sum of rewards.

    Args:
        function: The function.
        conversational: Passes prompts as messages and completions as `[{"role": "assistant", "content": text}]`, as TRL does
            with conversations; else both are plain text.

    Raises:
        ValueError: The argument is no function.
    """
    if not callable(function):
        raise ValueError(f"from_trl takes a function of (prompts, completions, **columns), got {function!r}")
    accepted = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())

    def score_group(prompt: Prompt, completions: Sequence[Completion]) -> list[Any]:
        count = len(completions)
        arguments = {
            "prompts": [list(prompt.messages) if conversational else _text(prompt)] * count,
            "completions": [_as_trl(completion, conversational) for completion in completions],
            "completion_ids": [completion.token_ids.tolist() for completion in completions],
        }
        fields = {"images": list(prompt.images), "answer": prompt.answer, "task": prompt.task}
        arguments |= {
            name: [value] * count for name, value in {**fields, **prompt.columns}.items() if name not in arguments
        }
        rewards = function(**{name: value for name, value in arguments.items() if takes_all or name in accepted})
        if inspect.isawaitable(rewards):
            rewards = awaited(rewards)
        return [0.0 if reward is None else reward for reward in rewards]

    return OfGroup(score_group, reward_name(function))


def _as_trl(completion: Completion, conversational: bool) -> Any:
    return [{"role": "assistant", "content": completion.text}] if conversational else completion.text


def _text(prompt: Prompt) -> str:
    """Returns the text of the last message, without images and videos."""
    content = prompt.messages[-1]["content"] if prompt.messages else ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join(part["text"] for part in parts if part["type"] == "text")
