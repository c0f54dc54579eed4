"""A step by task, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rewards import Score
from rl.metrics import task_metrics
from rl.samples import make_samples
from rollout import Completion, Group, Prompt


def group(task: str, num_completions: int) -> Group:
    completions = [Completion(text="x", token_ids=np.zeros(1, np.int32), logprobs=np.zeros(1, np.float32))]
    return Group(
        prompt=Prompt(id=task, messages=[], task=task),
        prompt_token_ids=np.zeros(1, np.int32),
        completions=completions * num_completions,
    )


def metrics_of(
    tasks: list[str], rewards: list[list[Score]], num_minibatches: int, *correct_at: float
) -> dict[str, float]:
    groups = [group(task, len(its)) for task, its in zip(tasks, rewards, strict=True)]
    return task_metrics(tasks, rewards, make_samples(groups, rewards), num_minibatches, *correct_at)


def scores(*rewards: float) -> list[Score]:
    return [Score(reward=reward) for reward in rewards]


def test_each_task_has_its_share_its_rewards_and_what_there_is_to_learn():
    # a: 1 0, with advantages ±1; 0 0, without; 3 of 4 groups, in the second minibatch 1 of 2. b: 2 1, advantages ±1.
    assert metrics_of(["a", "a", "a", "b"], [scores(1, 0), scores(0, 0), scores(0, 1), scores(2, 1)], 2) == {
        "reward/a/mean": pytest.approx(1 / 3),
        "reward/a/accuracy": pytest.approx(1 / 3),
        "reward/a/std": pytest.approx((2 / 9) ** 0.5),
        "reward/a/errors": 0.0,
        "reward/a/unreadable": 0.0,
        "reward/a/timeouts": 0.0,
        "reward/a/groups_without_variance": pytest.approx(1 / 3),
        "reward/a/advantage": pytest.approx(2 / 3),
        "rollout/task_share/a": 0.75,
        "rollout/task_share_min/a": 0.5,
        "reward/b/mean": 1.5,
        "reward/b/accuracy": 1.0,
        "reward/b/std": 0.5,
        "reward/b/errors": 0.0,
        "reward/b/unreadable": 0.0,
        "reward/b/timeouts": 0.0,
        "reward/b/groups_without_variance": 0.0,
        "reward/b/advantage": 1.0,
        "rollout/task_share/b": 0.25,
        "rollout/task_share_min/b": 0.0,
    }


def test_what_counts_as_correct_may_be_less_than_1():
    # Of the four, .5 and .7 reach .5.
    metrics = metrics_of(["a", "b"], [scores(0.5, 0.4, 0.7, 0.0), scores(0, 0)], 1, 0.5)
    assert (metrics["reward/a/accuracy"], metrics["reward/a/mean"]) == (0.5, pytest.approx(0.4))


def test_a_part_named_accuracy_is_a_tasks_accuracy():
    judged = [Score(reward=1.5, parts={"accuracy": 0.5, "format": 1.0}), Score(reward=0.0, parts={"accuracy": 0.0})]
    metrics = metrics_of(["a", "b"], [judged, scores(0, 0)], 1)
    assert (metrics["reward/a/accuracy"], metrics["reward/a/format"]) == (0.25, 1.0)


def test_a_task_without_any_verdict_has_errors_and_its_share():
    failed = [Score(reward=0.0, error="hung")] * 2
    metrics = metrics_of(["a", "b"], [failed, scores(1, 0)], 1)
    assert {name: value for name, value in metrics.items() if "a" in name.split("/")[1:]} == {
        "reward/a/errors": 2.0,
        "reward/a/timeouts": 0.0,
        "reward/a/groups_without_variance": 1.0,
        "rollout/task_share/a": 0.5,
        "rollout/task_share_min/a": 0.5,
    }


def test_of_a_single_task_there_is_nothing_more_to_say():
    assert metrics_of(["a", "a"], [scores(1, 0), scores(0, 0)], 2) == {}
