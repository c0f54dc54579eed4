"""Rewards made of rewards."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

from rewards.checking import attempt
from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt


def weighted(parts: Mapping[str, tuple[Verifier, float]]) -> Verifier:
    """Makes a reward that is a weighted sum: `weighted({"accuracy": (math_answer, 1.0), "format": (my_format, 0.2)})`.

    The weights are used as they are, not normalised. `Score.parts` holds the reward of each part before weighting, and
    the parts of a part under `"part/inner"`. The first part without a verdict leaves the sum without one: its error,
    after the part's name, is the score's.

    Args:
        parts: The function and the weight of each part, by the name that metrics show; a weight of 0 only watches.

    Raises:
        ValueError: There are no parts, or one is not a pair of a function and a number.
    """
    if not parts:
        raise ValueError("weighted needs at least one part, such as {'accuracy': (exact, 1.0)}, got none")
    for name, part in parts.items():
        is_pair = isinstance(part, tuple) and len(part) == 2
        if not is_pair or not callable(part[0]) or not isinstance(part[1], Real):
            raise ValueError(f"part {name!r} of weighted must be a pair (function, weight), got {part!r}")
    parts = dict(parts)

    def _weighted_sum(prompt: Prompt, completion: Completion) -> Score:
        total, seen = 0.0, dict[str, float]()
        for name, (reward, weight) in parts.items():
            score = attempt(reward, prompt, completion)
            if score.error is not None:
                return Score(reward=0.0, parts=seen, error=f"part {name!r}: {score.error}")
            seen[name] = score.reward
            seen.update({f"{name}/{inner}": value for inner, value in score.parts.items()})
            total += weight * score.reward
        return Score(reward=total, parts=seen)

    _weighted_sum.__name__ = f"weighted({', '.join(parts)})"
    return _weighted_sum


def by_task(rewards: Mapping[str, Verifier]) -> Verifier:
    """Makes a reward that leaves each prompt to the reward of its task: `by_task({"sums": math_answer, "vqa": exact})`.

    Args:
        rewards: The reward of each task, by `Prompt.task`.

    Raises:
        ValueError: There are no rewards, or one is not a function; when called, the prompt's task has no reward.
    """
    if not rewards:
        raise ValueError("by_task needs at least one task, such as {'sums': math_answer}, got none")
    for task, reward in rewards.items():
        if not callable(reward):
            raise ValueError(f"the reward of task {task!r} must be a function, got {reward!r}")
    rewards = dict(rewards)

    def _reward_of_task(prompt: Prompt, completion: Completion) -> float | Score:
        if prompt.task not in rewards:
            raise ValueError(f"by_task has no reward for task {prompt.task!r}; it knows {sorted(rewards)}")
        return rewards[prompt.task](prompt, completion)

    _reward_of_task.__name__ = f"by_task({', '.join(rewards)})"
    return _reward_of_task
