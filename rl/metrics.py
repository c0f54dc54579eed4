"""Metrics of one step: rewards, responses, tasks, teacher.

Lists: groups of a step, completions of a group. Shapes: T tokens of a completion.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from rewards.metrics import reward_metrics
from rewards.types import Score
from rl.generation.batches import ScoredBatch
from rl.generation.dynamic_sampling import has_variance
from rl.hardware.stopwatch import Stopwatch
from rl.samples import Sample, TeacherLogprobs
from rollout.data.mixture import minibatch_sizes
from rollout.types import Group, sampled_mask, token_versions


def step_metrics(
    batch: ScoredBatch,
    samples: Sequence[Sequence[Sample]],
    policy_version: int,
    num_minibatches: int,
    correct_at: float,
) -> dict[str, float]:
    """Metrics of one step's batch.

    Args:
        batch: The batch.
        samples: [groups][completions with a score], with their advantages.
        policy_version: The learner's version, before the step's updates.
        num_minibatches: Minibatches that the groups are divided into, in order.
        correct_at: Lowest reward of a correct completion.
    """
    return {
        **reward_metrics(batch.scores),
        **rollout_metrics(batch, policy_version),
        **task_metrics(
            [group.prompt.task for group in batch.groups], batch.scores, samples, num_minibatches, correct_at
        ),
        **(teacher_metrics(batch.groups, batch.teacher_logprobs) if batch.teacher_logprobs else {}),
    }


def step_time(timer: Stopwatch) -> dict[str, float]:
    """`time/<phase>` and `time/step` in seconds; `time/learner_idle`, the share of the step without learning."""
    phases = timer.metrics()
    return {**phases, "time/step": timer.total, "time/learner_idle": 1 - phases["time/learn"] / timer.total}


def rollout_metrics(batch: ScoredBatch, policy_version: int) -> dict[str, float]:
    """Length, age and speed of the responses, and the share of groups without reward variance.

    Args:
        batch: The batch.
        policy_version: The learner's version, before the step's updates.

    Returns:
        - `rollout/response_tokens`: sampled tokens, mean over completions;
        - `rollout/turns`: turns, mean over episodes;
        - `rollout/truncated`: share of completions cut at a limit;
        - `rollout/groups_without_variance`: share of groups whose rewards are all equal;
        - `rollout/refills`: groups that dynamic sampling replaced;
        - `rollout/staleness`: policy versions off-policy, mean over tokens;
        - `rollout/tokens_per_second`: while generating;
        - `time/generate`, `time/score`: seconds.
    """
    completions = [completion for group in batch.groups for completion in group.completions]
    versions = np.concatenate([token_versions(completion)[sampled_mask(completion)] for completion in completions])
    turns = [len(completion.turns) for completion in completions if completion.turns is not None]
    return {
        "rollout/response_tokens": len(versions) / len(completions),
        "rollout/truncated": float(np.mean([completion.finish_reason == "length" for completion in completions])),
        "rollout/groups_without_variance": float(np.mean([not has_variance(scores) for scores in batch.scores])),
        "rollout/refills": float(batch.num_refills),
        "rollout/staleness": float(np.mean(policy_version - versions)) if len(versions) else 0.0,
        "rollout/tokens_per_second": len(versions) / batch.seconds_to_generate,
        "time/generate": batch.seconds_to_generate,
        "time/score": batch.seconds_to_score,
        **({"rollout/turns": sum(turns) / len(turns)} if turns else {}),
    }


def task_metrics(
    tasks: Sequence[str],
    scores: Sequence[Sequence[Score]],
    samples: Sequence[Sequence[Sample]],
    num_minibatches: int,
    correct_at: float = 1.0,
) -> dict[str, float]:
    """Metrics of each task; empty if all groups have the same task.

    Args:
        tasks: The task of each group.
        scores: [groups][completions].
        samples: [groups][completions with a score], with their advantages.
        num_minibatches: Minibatches that the groups are divided into, in order.
        correct_at: Lowest reward of a correct completion.

    Returns:
        For each task:

        - `rollout/task_share/<task>`, its share of the groups;
        - `rollout/task_share_min/<task>`, its share in the minibatch with the least of it;
        - `reward/<task>/mean`, `reward/<task>/<part>`, …: `rewards.metrics.reward_metrics` of its scores;
        - `reward/<task>/accuracy`, the share of scores of at least `correct_at`, unless a part has that name;
        - `reward/<task>/groups_without_variance`, the share of groups whose rewards are all equal;
        - `reward/<task>/advantage`, the mean of |A| over its samples.
    """
    metrics: dict[str, float] = {}
    for task in sorted(set(tasks)) if len(set(tasks)) > 1 else []:
        members = [index for index, other in enumerate(tasks) if other == task]
        rewards = _task_reward_metrics([scores[i] for i in members], [samples[i] for i in members], correct_at)
        metrics |= {f"reward/{task}/{name}": value for name, value in rewards.items()}
        metrics[f"rollout/task_share/{task}"] = len(members) / len(tasks)
        metrics[f"rollout/task_share_min/{task}"] = _smallest_share(task, tasks, num_minibatches)
    return metrics


def _task_reward_metrics(
    scores: Sequence[Sequence[Score]], samples: Sequence[Sequence[Sample]], correct_at: float
) -> dict[str, float]:
    values = [score.reward for group in scores for score in group if score.error is None]
    advantages = [abs(sample.advantage) for group in samples for sample in group]
    return {
        **({"accuracy": fmean(reward >= correct_at for reward in values)} if values else {}),
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


def teacher_metrics(groups: Sequence[Group], teacher_logprobs: TeacherLogprobs) -> dict[str, float]:
    """Distance between the student that sampled and its teacher.

    Returns:
        `policy/teacher_kl`, the mean of log μ − log q over all sampled tokens, in nats per token: an unbiased estimate of
        KL(μ ‖ q) on the student's own responses. With several tasks also `policy/teacher_kl/<task>`.
    """
    differences = defaultdict(list)
    for group, logprobs in zip(groups, teacher_logprobs, strict=True):
        for completion, teacher_T in zip(group.completions, logprobs, strict=True):
            differences[group.prompt.task].append((completion.logprobs - teacher_T)[sampled_mask(completion)])
    by_task = {task: np.concatenate(parts) for task, parts in differences.items()}
    named = {"": np.concatenate(list(by_task.values()))}
    if len(by_task) > 1:
        named |= {f"/{task}": by_task[task] for task in sorted(by_task)}
    return {
        f"policy/teacher_kl{name}": float(values.mean(dtype=np.float64))
        for name, values in named.items()
        if len(values)
    }
