"""Counting failures of the learner: how many in one place end a run. A run whose learner dies is in test_faults_of_runs."""

from __future__ import annotations

import pytest

from rl.recovery import LearnerFailures
from rl.types import LearnerFailed

FAILURE = LearnerFailed("rank 3 of the learner: a worker process died")


def test_failures_at_later_and_later_policy_versions_never_end_a_run():
    failures = LearnerFailures(limit=1)
    for version in range(100):
        failures.add(version, FAILURE)
    assert failures.total == 100


def test_a_policy_version_that_training_does_not_get_past_ends_the_run_with_the_last_reason():
    failures = LearnerFailures(limit=3)
    for version in (7, 5, 7):  # it went back to 5, and has failed on its way
        failures.add(version, FAILURE)
    with pytest.raises(LearnerFailed) as stopped:
        failures.add(6, FAILURE)
    assert str(stopped.value) == (
        "rank 3 of the learner: a worker process died\n"
        "The learner has failed 4 times at policy version 7 (learner.max_failures = 3); the checkpoints up to here are good, "
        "and --resume auto goes on"
    )


def test_without_replacements_the_first_failure_ends_the_run():
    with pytest.raises(LearnerFailed, match="has failed 1 times at policy version 0"):
        LearnerFailures(limit=0).add(0, FAILURE)
