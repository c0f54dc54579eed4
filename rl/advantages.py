"""Rewards of a group → advantages of its completions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.types import Score

EPSILON = 1e-6
"""Rewards that differ by rounding only must not be blown up to unit variance."""


def group_advantages(scores: Sequence[Score]) -> np.ndarray:
    """A_i = (R_i − mean) / std over the completions of one prompt; std is the population's, as in arXiv 2511.20347.

    Args:
        scores: [G] the verdicts on one prompt's completions. Those with an error have no reward to compare: they take no
            part in mean and std, and their advantage is 0.

    Returns:
        [G] float32 advantages; all 0 where the rewards are equal.
    """
    rewards_G = np.array([score.reward for score in scores], np.float64)
    valid_G = np.array([score.error is None for score in scores], bool)
    advantages_G = np.zeros(len(scores), np.float32)
    if valid_G.any():
        centred = rewards_G[valid_G] - rewards_G[valid_G].mean()
        std = centred.std()
        if std > EPSILON:
            advantages_G[valid_G] = centred / std
    return advantages_G
