"""Adapter for reward functions written for TRL."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from numbers import Real
from types import SimpleNamespace
from typing import Any

from rewards.types import Score, Verifier
from rewards.workers.call import OfGroup, awaited, reward_name
from rollout.types import Completion, Prompt


def from_trl(function: Callable[..., Any], *, conversational: bool = True) -> Verifier:
    """Makes a verifier of a TRL reward function: `(prompts, completions, **columns) -> list of numbers`, `async` or not.

    One call gets all completions of one prompt, where TRL passes a whole batch. It passes `prompts`, `completions`,
    `completion_ids` (token ids), `images`, `image` (the first), `answer`, `task` and every dataset column, each as a list with
    one entry a completion. The function gets those that it names, or all if it takes `**kwargs`. A column replaces a field of the
    same name. `None` instead of a number counts as 0, as in TRL's sum of rewards. Numbers may be scalars of torch or numpy.

    `trainer_state` has the `global_step` whose weights sampled the completions. What `log_metric` and `log_extra` are given
    becomes `Score.parts`: a metric for all completions of the prompt, and the numbers of a column for one each.

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
        arguments: dict[str, Any] = {
            "prompts": [list(prompt.messages) if conversational else _text(prompt)] * count,
            "completions": [_as_trl(completion, conversational) for completion in completions],
            "completion_ids": [completion.token_ids.tolist() for completion in completions],
        }
        images = list(prompt.images)
        fields = {
            "images": images,
            "image": images[0] if images else None,
            "answer": prompt.answer,
            "task": prompt.task,
        }
        arguments |= {
            name: [value] * count for name, value in {**fields, **prompt.columns}.items() if name not in arguments
        }
        log = _Log(count)
        state = SimpleNamespace(global_step=max((each.policy_version for each in completions), default=0), epoch=0.0)
        of_trainer = {"trainer_state": state, "log_metric": log.metric, "log_extra": log.extra}
        arguments = of_trainer | arguments
        rewards = function(**{name: value for name, value in arguments.items() if takes_all or name in accepted})
        if inspect.isawaitable(rewards):
            rewards = awaited(rewards)
        numbers = [0.0 if reward is None else _number(reward) for reward in rewards]
        if len(numbers) != count or not log.has_parts:
            return numbers
        return [Score(reward=number, parts=parts) for number, parts in zip(numbers, log.parts, strict=True)]

    return OfGroup(score_group, reward_name(function))


class _Log:
    """Takes what a function logs, as parts of the scores of `count` completions."""

    def __init__(self, count: int) -> None:
        self.parts: list[dict[str, float]] = [{} for _ in range(count)]

    @property
    def has_parts(self) -> bool:
        return any(self.parts)

    def metric(self, name: str, value: Any) -> None:
        self.extra(name, [value] * len(self.parts))

    def extra(self, column: str, values: Sequence[Any]) -> None:
        for parts, value in zip(self.parts, values, strict=False):
            number = _number(value)
            if isinstance(number, Real):
                parts[column] = float(number)


def _number(value: Any) -> Any:
    """Returns a scalar of torch or numpy as a number of Python; any other value as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _as_trl(completion: Completion, conversational: bool) -> Any:
    return [{"role": "assistant", "content": completion.text}] if conversational else completion.text


def _text(prompt: Prompt) -> str:
    """Returns the text of the last message, without images and videos."""
    content = prompt.messages[-1]["content"] if prompt.messages else ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join(part["text"] for part in parts if part["type"] == "text")
