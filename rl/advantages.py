"""Advantages of a step's completions, computed from their rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.types import Score
from rl.config import AdvantageKind

EPSILON = 1e-6
"""Smallest standard deviation: rewards that differ only by rounding must not be scaled to unit variance."""


def step_advantages(
    scores: Sequence[Sequence[Score]], tasks: Sequence[str], kind: AdvantageKind = "group_std"
) -> list[np.ndarray]:
    """Returns the advantages of all completions of a step.

    Args:
        scores: [groups][G]. Scores with an error have no reward: they are left out of every mean and std, and get advantage 0.
        tasks: The task of each group.
        kind: The formula from the rewards R of a group to advantages:
            - `group_std`: (R − mean) / std with the population's std, as in arXiv 2511.20347.
            - `group_std_sample`: the same with the sample's std (G − 1), as in GRPO's implementations.
            - `group_mean`: R − mean, as in Dr. GRPO (arXiv 2503.20783).
            - `leave_one_out`: R − mean of the *other* rewards, as in RLOO (arXiv 2402.14740).
            - `task_std`: (R − mean) / std of that difference over all groups of the task in this step. A task with large
              rewards then does not dominate the others.

    Returns:
        [groups] of [G] float32; all 0 for a group with equal rewards.
    """
    advantages = [group_advantages(group, kind) for group in scores]
    if kind != "task_std":
        return advantages
    for task in set(tasks):
        members = [i for i, group_task in enumerate(tasks) if group_task == task]
        valid = np.concatenate([advantages[i][[s.error is None for s in scores[i]]] for i in members])
        std = valid.std() if len(valid) else 0.0
        for i in members:
            advantages[i] = advantages[i] / std if std > EPSILON else np.zeros_like(advantages[i])
    return advantages


def group_advantages(scores: Sequence[Score], kind: AdvantageKind = "group_std") -> np.ndarray:
    """Returns the advantages of one group; see `step_advantages`. `task_std` gives the difference alone here.

    Returns:
        [G] float32; all 0 if the rewards are equal.
    """
    valid_G = np.array([score.error is None for score in scores], bool)
    rewards_V = np.array([score.reward for score in scores], np.float64)[valid_G]
    advantages_G = np.zeros(len(scores), np.float32)
    if len(rewards_V) < 2 or rewards_V.std() <= EPSILON:
        return advantages_G
    centred_V = rewards_V - rewards_V.mean()
    if kind == "group_std":
        centred_V /= rewards_V.std()
    elif kind == "group_std_sample":
        centred_V /= rewards_V.std(ddof=1)
    elif kind == "leave_one_out":
        # R − (ΣR − R) / (V − 1) = (R − mean) · V / (V − 1)
        centred_V *= len(rewards_V) / (len(rewards_V) - 1)
    advantages_G[valid_G] = centred_V
    return advantages_G
