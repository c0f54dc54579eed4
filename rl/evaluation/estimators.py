"""What several samples of each prompt say of a policy: pass@k, avg@K, majority@K, and how far chance may have moved them.

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
"""Values that the bootstrap draws in one go: 64 MB."""


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> np.ndarray:
    """The chance that of k samples of a prompt at least one is correct: 1 − C(n−c, k) / C(n, k).

    Unbiased, unlike 1 − (1 − c/n)^k (Chen et al. 2021, arXiv 2107.03374, equation 1). Computed as a product of k factors between
    0 and 1: no binomial coefficient overflows, and where every choice of k holds a correct sample it is 1 exactly.

    Args:
        num_samples: [P] or one number, n.
        num_correct: [P] or one number, c.
        k: How many may be tried.

    Returns:
        [P] or a scalar, float64.

    Raises:
        ValueError: A prompt has fewer than k samples, or more correct ones than samples.
    """
    n, c = np.asarray(num_samples), np.asarray(num_correct)
    if k < 1:
        raise ValueError(f"k of pass@k must be >= 1, got {k}")
    if (n < k).any():
        raise ValueError(f"pass@{k} needs {k} samples of each prompt, one has {n.min()}: lower k or sample more")
    if ((c < 0) | (c > n)).any():
        raise ValueError("num_correct must be from 0 to num_samples, for each prompt")
    tried = np.arange(k)
    all_wrong = np.clip((n[..., None] - c[..., None] - tried) / (n[..., None] - tried), 0.0, None)
    return 1.0 - all_wrong.prod(-1)


def average_at_k(num_samples: ArrayLike, num_correct: ArrayLike) -> np.ndarray:
    """The share of a prompt's samples that are correct, c / n: avg@K before the mean over prompts, and the same as pass@1.

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
    """How right the answer is that most samples of one prompt agree on.

    Samples vote for their answer; `""` is no answer and no vote. Where several answers have the most votes, one of them would be
    drawn, so that their mean is what to expect. An answer whose samples were judged differently counts as the mean of them.

    Args:
        answers: [n] each sample's answer, in a form in which the same answer is the same text (`rl.evaluation.results.answer_key`).
        correct: [n] 1 where the sample is correct, else 0.

    Returns:
        From 0 to 1; 0 where nobody votes.
    """
    votes = defaultdict(list)
    for answer, is_correct in zip(answers, correct, strict=True):
        if answer:
            votes[answer].append(float(is_correct))
    most = max(map(len, votes.values()), default=0)
    tied = [sum(judged) / most for judged in votes.values() if len(judged) == most]
    return sum(tied) / len(tied) if tied else 0.0


def bootstrap_interval(
    values_P: ArrayLike,
    *,
    level: float = 0.95,
    num_resamples: int = 4000,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """A confidence interval of the mean over prompts, for prompts like these.

    Prompts are drawn anew, their samples are not: a prompt's value already carries the luck of its samples, and drawing them
    again would count that luck twice. The truth that it covers is the mean over all prompts that could have been in the set; of
    the mean over exactly these prompts it is an interval on the safe side.

    The percentiles are moved outward as Student's t is from the normal (Hesterberg 2015, "expanded percentile interval"): plain
    ones miss too often with few prompts.

    Args:
        values_P: [P] a value for each prompt, the mean over its samples.
        level: How often the interval is to cover the truth.
        num_resamples: Draws of P prompts.
        seed: Seeds the draws.
        bounds: Between which values are possible. Where all P lie on the same bound, drawing them anew shows nothing else; the
            interval then goes as far inward as that of a share of 0 or 1 out of P (Clopper–Pearson).

    Returns:
        Lower and upper end. Of a single prompt `bounds`, or (nan, nan).

    Raises:
        ValueError: There are no values, or `level` is not between 0 and 1.
    """
    values_P = np.asarray(values_P, np.float64)
    num_prompts = len(values_P)
    if not num_prompts:
        raise ValueError("an interval needs at least one prompt, got none")
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
    tail = NormalDist().cdf(-_student(1 - tail, num_prompts - 1) * math.sqrt(num_prompts / (num_prompts - 1)))
    lower, upper = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(lower), float(upper)


def _student(probability: float, freedom: int) -> float:
    """Student's t at a probability, by the Cornish–Fisher expansion: three digits from 5 degrees of freedom on."""
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
