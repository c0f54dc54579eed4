"""Reward functions written for TRL, used here as they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from rewards.types import Verifier
from rewards.workers.call import OfGroup, awaited, reward_name
from rollout.types import Completion, Prompt


def from_trl(function: Callable[..., Any], *, conversational: bool = True) -> Verifier:
    """Makes a verifier of a TRL reward function: `(prompts, completions, **columns) -> list of numbers`, `async` or not.

    It sees all completions of one prompt at a time; TRL shows it a whole batch. It is given `prompts`, `completions`,
    `completion_ids` (token ids), `images`, `answer`, `task` and every dataset column, each as a list with one entry a completion,
    as far as it names them or takes `**kwargs`; a column goes before a field of the same name. `None` in place of a number counts
    as 0, as it does in TRL's sum of rewards.

    Args:
        function: The function.
        conversational: Whether prompts are shown as messages and completions as `[{"role": "assistant", "content": text}]`, which
            is what TRL does with conversations; else both are plain text.

    Raises:
        ValueError: It is no function.
    """
    if not callable(function):
        raise ValueError(f"from_trl takes a function of (prompts, completions, **columns), got {function!r}")
    accepted = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())

    def of_siblings(prompt: Prompt, completions: Sequence[Completion]) -> list[Any]:
        count = len(completions)
        given = {
            "prompts": [list(prompt.messages) if conversational else _text(prompt)] * count,
            "completions": [_shown(completion, conversational) for completion in completions],
            "completion_ids": [completion.token_ids.tolist() for completion in completions],
        }
        fields = {"images": list(prompt.images), "answer": prompt.answer, "task": prompt.task}
        given |= {name: [value] * count for name, value in {**fields, **prompt.columns}.items() if name not in given}
        rewards = function(**{name: value for name, value in given.items() if takes_all or name in accepted})
        if inspect.isawaitable(rewards):
            rewards = awaited(rewards)
        return [0.0 if reward is None else reward for reward in rewards]

    return OfGroup(of_siblings, reward_name(function))


def _shown(completion: Completion, conversational: bool) -> Any:
    return [{"role": "assistant", "content": completion.text}] if conversational else completion.text


def _text(prompt: Prompt) -> str:
    """The text of the last message, images and videos left out."""
    content = prompt.messages[-1]["content"] if prompt.messages else ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join(part["text"] for part in parts if part["type"] == "text")
