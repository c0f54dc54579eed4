"""What each of several tasks contributes to a step: how much of it, how well it goes, and how much there is to learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from rewards.metrics import reward_metrics
from rewards.types import Score
from rl.generation.batches import has_variance
from rl.types import Sample
from rollout.data.mixture import minibatch_sizes


def task_metrics(
    tasks: Sequence[str],
    scores: Sequence[Sequence[Score]],
    samples: Sequence[Sequence[Sample]],
    num_minibatches: int,
    correct_at: float = 1.0,
) -> dict[str, float]:
    """Summarises a step by task; empty where all groups are of one.

    Args:
        tasks: The task of each group.
        scores: [groups][completions].
        samples: [groups][completions with a verdict], with their advantages.
        num_minibatches: Into how many minibatches the groups are divided, in order.
        correct_at: From this reward on a completion counts as correct.

    Returns:
        For each task `rollout/task_share/<task>`, its share of the groups, and `rollout/task_share_min/<task>`, its share in the
        minibatch that has least of it; what `rewards.metrics.reward_metrics` says of its scores, as `reward/<task>/mean`,
        `reward/<task>/<part>` and so on; `reward/<task>/accuracy`, where no part has that name: the share of verdicts of at least
        correct_at; `reward/<task>/groups_without_variance`, the share of groups whose rewards are all equal; and
        `reward/<task>/advantage`, the mean of |A| over its samples.
    """
    metrics: dict[str, float] = {}
    for task in sorted(set(tasks)) if len(set(tasks)) > 1 else []:
        members = [index for index, its in enumerate(tasks) if its == task]
        of_rewards = _reward_metrics([scores[i] for i in members], [samples[i] for i in members], correct_at)
        metrics |= {f"reward/{task}/{name}": value for name, value in of_rewards.items()}
        metrics[f"rollout/task_share/{task}"] = len(members) / len(tasks)
        metrics[f"rollout/task_share_min/{task}"] = _smallest_share(task, tasks, num_minibatches)
    return metrics


def _reward_metrics(
    scores: Sequence[Sequence[Score]], samples: Sequence[Sequence[Sample]], correct_at: float
) -> dict[str, float]:
    verdicts = [score.reward for group in scores for score in group if score.error is None]
    advantages = [abs(sample.advantage) for group in samples for sample in group]
    return {
        **({"accuracy": fmean(reward >= correct_at for reward in verdicts)} if verdicts else {}),
        **{name.removeprefix("reward/"): value for name, value in reward_metrics(scores).items()},
        "groups_without_variance": fmean(not has_variance(group) for group in scores),
        **({"advantage": fmean(advantages)} if advantages else {}),
    }


def _smallest_share(task: str, tasks: Sequence[str], num_minibatches: int) -> float:
    shares, start = [], 0
    for size in filter(None, minibatch_sizes(len(tasks), num_minibatches)):
        shares.append(Counter(tasks[start : start + size])[task] / size)
        start += size
    return min(shares)
