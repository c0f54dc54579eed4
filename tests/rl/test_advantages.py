"""Rewards of a group → advantages, with numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.types import Score
from rl.advantages import group_advantages, step_advantages


def advantages(*rewards: float | None) -> list[float]:
    """None stands for a completion whose verifier failed."""
    scores = [Score(reward=0.0, error="broken") if r is None else Score(reward=r) for r in rewards]
    return group_advantages(scores).tolist()


def test_one_right_of_four_gets_the_square_root_of_three():
    # mean 1/4, population std √(3/16): (3/4) / (√3/4) = √3 and (−1/4) / (√3/4) = −1/√3
    assert advantages(1, 0, 0, 0) == pytest.approx([1.7320508, -0.5773503, -0.5773503, -0.5773503], abs=1e-6)


def test_std_is_that_of_the_population():
    assert advantages(1, 0) == [1.0, -1.0]  # the sample's std would give ±0.7071


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -3.7])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_equal_rewards_teach_nothing(reward: float, size: int):
    assert advantages(*[reward] * size) == [0.0] * size


def test_rewards_that_differ_by_rounding_teach_nothing():
    assert advantages(0.1 + 0.2, 0.3, 0.3) == [0.0, 0.0, 0.0]


def test_a_failed_verifier_takes_no_part_in_the_comparison():
    assert advantages(1, None, 0, None) == [1.0, 0.0, -1.0, 0.0]


def test_a_group_of_failed_verifiers_is_all_zero():
    assert advantages(None, None) == [0.0, 0.0]
    assert advantages(1.0, None) == [0.0, 0.0]  # one alone has nobody to be compared with


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=16), st.integers(-100, 100), st.integers(1, 50))
def test_advantages_have_mean_0_and_std_1_whatever_the_scale_of_the_reward(rewards: list[int], shift: int, scale: int):
    got = np.array(advantages(*rewards))
    assert got == pytest.approx(np.array(advantages(*[scale * r + shift for r in rewards])), abs=1e-5)
    assert got.mean() == pytest.approx(0.0, abs=1e-6)
    assert got.std() == pytest.approx(0.0 if len(set(rewards)) == 1 else 1.0, abs=1e-6)
    assert group_advantages([Score(reward=r) for r in rewards]).dtype == np.float32


def scores(*rewards: float | None) -> list[Score]:
    return [Score(reward=0.0, error="broken") if r is None else Score(reward=r) for r in rewards]


# Rewards 4, 1, 1: mean 2, population std √2, sample std √3.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("group_std", [2 / 2**0.5, -1 / 2**0.5, -1 / 2**0.5]),
        ("group_std_sample", [2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5]),
        ("group_mean", [2, -1, -1]),
        ("leave_one_out", [4 - 1, 1 - 2.5, 1 - 2.5]),
        ("task_std", [2 / 2**0.5, -1 / 2**0.5, -1 / 2**0.5]),  # one group is all there is of its task
    ],
)
def test_each_kind_has_the_numbers_worked_by_hand(kind: str, expected: list[float]):
    [advantages] = step_advantages([scores(4, 1, 1)], ["sums"], kind)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)
    [with_failure] = step_advantages([scores(4, None, 1, 1)], ["sums"], kind)
    assert with_failure.tolist() == pytest.approx([expected[0], 0, *expected[1:]], abs=1e-6)


@pytest.mark.parametrize("kind", ["group_std", "group_std_sample", "group_mean", "leave_one_out", "task_std"])
def test_equal_rewards_and_lone_verdicts_teach_nothing_in_any_kind(kind: str):
    got = step_advantages([scores(3, 3), scores(5, None), scores(None, None)], ["a", "a", "b"], kind)
    assert [advantages.tolist() for advantages in got] == [[0, 0]] * 3


def test_a_task_is_measured_by_its_own_spread_over_the_step():
    # Task a: differences ±1 and ±3, std √5; task b, in hundreds: ±100 alone.
    got = step_advantages([scores(1, -1), scores(200, 0), scores(6, 0)], ["a", "b", "a"], "task_std")
    assert got[0].tolist() == pytest.approx([1 / 5**0.5, -1 / 5**0.5])
    assert got[1].tolist() == pytest.approx([1, -1])
    assert got[2].tolist() == pytest.approx([3 / 5**0.5, -3 / 5**0.5])
