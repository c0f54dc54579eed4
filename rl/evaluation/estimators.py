"""Estimators from several samples per prompt: pass@k, avg@K, majority@K, and confidence intervals of their means.

Shape suffixes: P prompts; n samples of a prompt, of which c are correct.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

MAX_DRAWS = 4_000_000
"""Values that the bootstrap draws at once: 64 MB."""


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> np.ndarray:
    """Returns the probability that at least one of k samples of a prompt is correct: 1 − C(n−c, k) / C(n, k).

    It is unbiased, unlike 1 − (1 − c/n)^k (Chen et al. 2021, arXiv 2107.03374, equation 1). It is a product of k factors
    from 0 to 1: no binomial coefficient overflows, and the result is exactly 1 if every choice of k holds a correct sample.

    Args:
        num_samples: [P] or one number, n.
        num_correct: [P] or one number, c.
        k: Samples that may be tried.

    Returns:
        [P] or a scalar, float64.

    Raises:
        ValueError: A prompt has fewer than k samples, or more correct ones than samples.
    """
    n, c = np.asarray(num_samples), np.asarray(num_correct)
    if k < 1:
        raise ValueError(f"k of pass@k must be >= 1, got {k}")
    if (n < k).any():
        raise ValueError(f"pass@{k} needs {k} samples of each prompt, but one has {n.min()}: lower k or sample more")
    if ((c < 0) | (c > n)).any():
        raise ValueError("num_correct must be from 0 to num_samples, for each prompt")
    tried = np.arange(k)
    all_wrong = np.clip((n[..., None] - c[..., None] - tried) / (n[..., None] - tried), 0.0, None)
    return 1.0 - all_wrong.prod(-1)


def average_at_k(num_samples: ArrayLike, num_correct: ArrayLike) -> np.ndarray:
    """Returns the share of correct samples of each prompt, c / n. It equals pass@1; its mean over prompts is avg@K.

    Args:
        num_samples: [P] or one number, n.
        num_correct: [P] or one number, c.

    Returns:
        [P] or a scalar, float64.

    Raises:
        ValueError: As `pass_at_k`.
    """
    return pass_at_k(num_samples, num_correct, 1)


def majority_at_k(answers: Sequence[str], correct: Sequence[float]) -> float:
    """Returns the expected correctness of the majority answer of one prompt's samples.

    Each sample votes for its answer; `""` is no vote. If several answers tie, one of them would be drawn, so the result is their
    mean. An answer whose samples got different verdicts counts as the mean of those verdicts.

    Args:
        answers: [n] each sample's normal form of its answer (`rewards.text.answer_key.answer_key`): equal answers are equal texts.
        correct: [n] 1 if the sample is correct, else 0.

    Returns:
        From 0 to 1; 0 without votes.
    """
    votes = defaultdict(list)
    for answer, is_correct in zip(answers, correct, strict=True):
        if answer:
            votes[answer].append(float(is_correct))
    most = max(map(len, votes.values()), default=0)
    tied = [sum(verdicts) / most for verdicts in votes.values() if len(verdicts) == most]
    return sum(tied) / len(tied) if tied else 0.0


def bootstrap_interval(
    values_P: ArrayLike,
    *,
    level: float = 0.95,
    num_resamples: int = 4000,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Returns a bootstrap confidence interval of the mean over prompts.

    Prompts are resampled, their samples are not. A prompt's value already contains the noise of its samples; resampling them too
    would count that noise twice. The interval covers the mean over the population that the prompts were drawn from. It is
    conservative for the mean over exactly these prompts.

    The percentiles are moved outward, as Student's t is wider than the normal (Hesterberg 2015, "expanded percentile interval").
    Plain percentiles miss too often with few prompts.

    Args:
        values_P: [P] each prompt's mean over its samples.
        level: Probability that the interval covers the true mean.
        num_resamples: Draws of P prompts.
        seed: Seeds the draws.
        bounds: Smallest and largest possible value. If all P values lie on the same bound, every resample is the same. The
            interval then reaches as far inward as that of 0 or P successes out of P (Clopper–Pearson).

    Returns:
        Lower and upper end. For a single prompt: `bounds`, or (nan, nan).

    Raises:
        ValueError: There are no values, or `level` is not between 0 and 1.
    """
    values_P = np.asarray(values_P, np.float64)
    num_prompts = len(values_P)
    if not num_prompts:
        raise ValueError("a confidence interval needs at least one prompt, got none")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if num_prompts == 1:
        return bounds or (math.nan, math.nan)
    tail = (1 - level) / 2
    if bounds is not None and (values_P == values_P[0]).all() and values_P[0] in bounds:
        reach = (1 - tail ** (1 / num_prompts)) * (bounds[1] - bounds[0])
        return (bounds[0], bounds[0] + reach) if values_P[0] == bounds[0] else (bounds[1] - reach, bounds[1])
    rng = np.random.default_rng(seed)
    rounds = -(-num_resamples * num_prompts // MAX_DRAWS)
    means = [
        values_P[rng.integers(num_prompts, size=(len(part), num_prompts))].mean(1)
        for part in np.array_split(np.arange(num_resamples), rounds)
    ]
    tail = NormalDist().cdf(-student_quantile(1 - tail, num_prompts - 1) * math.sqrt(num_prompts / (num_prompts - 1)))
    lower, upper = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(lower), float(upper)


def student_quantile(probability: float, freedom: int) -> float:
    """Returns the quantile of Student's t distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # late: importing it takes 0.3 s

    return float(stdtrit(freedom, probability))
