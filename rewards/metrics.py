"""Metrics of a step's scores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev

from rewards.types import Score


def reward_metrics(scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Summarises the scores of a step.

    Args:
        scores: [groups][completions].

    Returns:
        `reward/errors`, the number of completions without a verdict, and `reward/errors/<verifier>`, the number of them that
        this verifier failed on. Over the others: `reward/mean`, `reward/std` (of the population), and `reward/<part>`, the
        mean of a part over the scores that have it. Without any verdict there are only the errors. `reward/timeouts` is the
        number of completions that count as wrong because their call took too long. `reward/unreadable` is the share of judged
        completions in which a verifier found no answer. A part with the name of one of these is not shown.
    """
    flat = [score for group in scores for score in group]
    judged = [score for score in flat if score.error is None]
    parts = defaultdict(list)
    for score in judged:
        for name, value in score.parts.items():
            parts[name].append(value)
    metrics = {f"reward/{name}": fmean(values) for name, values in parts.items()}
    if judged:
        rewards = [score.reward for score in judged]
        unread = fmean(score.unread for score in judged)
        metrics |= {"reward/mean": fmean(rewards), "reward/std": pstdev(rewards), "reward/unreadable": unread}
    failed = Counter(score.failed for score in flat if score.error is not None and score.failed)
    metrics |= {f"reward/errors/{name}": float(count) for name, count in failed.items()}
    timeouts = sum(score.timeout is not None for score in flat)
    return metrics | {"reward/errors": float(len(flat) - len(judged)), "reward/timeouts": float(timeouts)}
