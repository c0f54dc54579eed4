"""The numbers on the chart, worked by hand."""

import pytest

from rewards.metrics import reward_metrics
from rewards.types import Score


def test_mean_and_spread_are_over_the_completions_with_a_verdict() -> None:
    scores = [
        [Score(reward=1.0, parts={"accuracy": 1.0}), Score(reward=0.0, error="hung", failed="accuracy/exact")],
        [Score(reward=0.0, parts={"accuracy": 0.0, "format": 0.5}), Score(reward=2.0)],
    ]
    assert reward_metrics(scores) == {
        "reward/accuracy": 0.5,
        "reward/format": 0.5,
        "reward/mean": 1.0,
        "reward/std": pytest.approx((2 / 3) ** 0.5),
        "reward/errors": 1.0,
        "reward/errors/accuracy/exact": 1.0,
        "reward/timeouts": 0.0,
        "reward/unreadable": 0.0,
    }


def test_without_a_verdict_there_are_only_errors() -> None:
    assert reward_metrics([[Score(reward=0.0, error="raised")], []]) == {"reward/errors": 1.0, "reward/timeouts": 0.0}


def test_a_call_that_took_too_long_counts_as_wrong() -> None:
    metrics = reward_metrics([[Score(reward=1.0), Score(reward=0.0, timeout="took longer than 1 s")]])
    assert metrics["reward/mean"] == 0.5 and metrics["reward/timeouts"] == 1.0


def test_responses_without_a_readable_answer_are_a_share_of_those_with_a_verdict() -> None:
    unread, wrong, failed = Score(reward=0.0, unread=True), Score(reward=0.0), Score(reward=0.0, error="raised")
    assert reward_metrics([[unread, wrong, wrong, wrong, failed]])["reward/unreadable"] == 0.25
