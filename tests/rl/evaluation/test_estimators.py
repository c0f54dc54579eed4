"""pass@k, avg@K, majority@K and their intervals: against the published estimator, by hand, and in a simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from rl.evaluation.estimators import average_at_k, bootstrap_interval, majority_at_k, pass_at_k, student_quantile


def published(n: int, c: int, k: int) -> float:
    """As Chen et al. print it (arXiv 2107.03374, figure 3): 1 − ∏ (1 − k/i) over i from n−c+1 to n."""
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@pytest.mark.parametrize("n", [1, 2, 7, 16, 200])
def test_pass_at_k_is_the_published_estimator(n: int) -> None:
    for k in {1, 2, 5, 10, 100, n} & set(range(1, n + 1)):
        correct = np.arange(n + 1)
        expected = [published(n, c, k) for c in correct]
        assert pass_at_k(np.full(n + 1, n), correct, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 1 − C(3,2)/C(4,2) = 1 − 3/6
        (5, 2, 2, 7 / 10),  # 1 − C(3,2)/C(5,2) = 1 − 3/10
        (5, 2, 3, 9 / 10),  # 1 − C(3,3)/C(5,3) = 1 − 1/10
        (5, 2, 4, 1.0),  # of four there is always a correct one
        (16, 0, 16, 0.0),
        (16, 16, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_of_many_samples_neither_overflows_nor_loses_digits() -> None:
    exact = 1 - math.comb(9_990, 5_000) / math.comb(10_000, 5_000)
    assert pass_at_k(10_000, 10, 5_000) == pytest.approx(exact, abs=1e-12)


def test_pass_at_k_is_unbiased_where_the_plain_plug_in_is_not() -> None:
    n, k, p = 8, 4, 0.3
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert np.dot(chances, pass_at_k(np.full(n + 1, n), np.arange(n + 1), k)) == pytest.approx(truth, abs=1e-12)
    plug_in = 1 - (1 - np.arange(n + 1) / n) ** k
    assert abs(np.dot(chances, plug_in) - truth) > 0.03


def test_average_at_k_is_the_share_of_correct_samples() -> None:
    assert average_at_k([4, 4, 2], [0, 3, 1]) == pytest.approx([0, 0.75, 0.5])


@pytest.mark.parametrize(
    ("n", "c", "k", "told"),
    [
        ([8, 3], [1, 1], 4, "pass@4 needs 4 samples of each prompt, but one has 3: lower k or sample more"),
        (4, 5, 1, "num_correct must be from 0 to num_samples"),
        (4, 1, 0, "k of pass@k must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(n: object, c: object, k: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        ("17 17 12", [1, 1, 0], 1.0),
        ("17 12 12 12", [1, 0, 0, 0], 0.0),
        ("17 12", [1, 0], 1 / 2),  # a tie: one of the two is drawn
        ("17 12 9", [1, 0, 0], 1 / 3),
        ("17 17 12 12 9", [1, 1, 0, 0, 0], 1 / 2),  # 9 has one vote and takes no part
        ("8.5 8.5 8.5 3", [1, 1, 0, 0], 2 / 3),  # the same answer, judged differently
    ],
)
def test_majority_by_hand(answers: str, correct: list[int], expected: float) -> None:
    assert majority_at_k(answers.split(), correct) == pytest.approx(expected)


def test_who_gives_no_answer_has_no_vote() -> None:
    assert majority_at_k(["", "", "", "17"], [0, 0, 0, 1]) == 1.0
    assert majority_at_k(["", ""], [0, 0]) == 0.0
    assert majority_at_k([], []) == 0.0


def misses(num_prompts: int, num_samples: int, num_trials: int, alpha: float, beta: float) -> int:
    """How often the 95 % interval of avg@K misses: a prompt's chance is drawn from Beta(alpha, beta), its samples from that."""
    rng = np.random.default_rng(0)
    truth, missed = alpha / (alpha + beta), 0
    for trial in range(num_trials):
        correct_P = rng.binomial(num_samples, rng.beta(alpha, beta, num_prompts))
        values_P = average_at_k(np.full(num_prompts, num_samples), correct_P)
        lower, upper = bootstrap_interval(values_P, num_resamples=1000, seed=trial, bounds=(0.0, 1.0))
        missed += not lower <= truth <= upper
    return missed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_prompts", "num_samples", "alpha", "beta"),
    [(30, 8, 2.0, 2.0), (100, 4, 0.5, 0.5), (100, 16, 1.0, 3.0), (300, 1, 2.0, 1.0)],
)
def test_the_interval_of_the_average_covers_the_truth_at_its_stated_rate(
    num_prompts: int, num_samples: int, alpha: float, beta: float
) -> None:
    # Of 1,000 intervals at 95 %, 50 miss; Binomial(1000, .05) is within 29 and 73 with a chance of 99.9 %.
    assert 29 <= misses(num_prompts, num_samples, 1000, alpha, beta) <= 73


def test_few_prompts_are_covered_too_where_plain_percentiles_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 29 <= misses(10, 8, 1000, 2.0, 2.0) <= 73
    monkeypatch.setattr(
        "rl.evaluation.estimators.student_quantile",
        lambda probability, freedom: 1.96 * math.sqrt((freedom) / (freedom + 1)),
    )
    assert misses(10, 8, 1000, 2.0, 2.0) > 73  # the expansion is what does it


@pytest.mark.parametrize(("num_prompts", "tabled"), [(2, 12.706), (3, 4.303), (6, 2.571), (31, 2.042)])
def test_quantiles_of_student_are_those_of_the_tables(num_prompts: int, tabled: float) -> None:
    assert student_quantile(0.975, num_prompts - 1) == pytest.approx(tabled, abs=5e-4)


def test_an_interval_is_about_two_standard_errors_to_each_side() -> None:
    values = np.arange(400) / 399
    lower, upper = bootstrap_interval(values)
    error = values.std() / math.sqrt(400)
    assert (lower, upper) == pytest.approx((0.5 - 1.96 * error, 0.5 + 1.96 * error), abs=0.1 * error)


def test_the_same_seed_gives_the_same_interval_and_many_prompts_are_drawn_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).random(50)
    assert (
        bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    )
    whole = bootstrap_interval(values, seed=1)
    monkeypatch.setattr("rl.evaluation.estimators.MAX_DRAWS", 60)
    assert bootstrap_interval(values, seed=1) == whole


def test_twenty_right_out_of_twenty_is_no_certainty() -> None:
    # (1 − p)^20 = 0.025 at p = 0.168: the exact interval of a binomial share.
    assert bootstrap_interval(np.ones(20), bounds=(0.0, 1.0)) == pytest.approx((0.8316, 1.0), abs=1e-4)
    assert bootstrap_interval(np.zeros(20), bounds=(0.0, 1.0)) == pytest.approx((0.0, 0.1684), abs=1e-4)
    assert bootstrap_interval(np.ones(20)) == (1.0, 1.0)


def test_a_single_prompt_says_nothing_of_others() -> None:
    assert bootstrap_interval([0.5], bounds=(0.0, 1.0)) == (0.0, 1.0)
    assert all(map(math.isnan, bootstrap_interval([0.5])))


@pytest.mark.parametrize(
    ("values", "level", "told"), [([], 0.95, "at least one prompt"), ([1.0, 0.0], 95, "between 0 and 1, got 95")]
)
def test_an_interval_of_nothing_is_refused(values: list[float], level: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        bootstrap_interval(values, level=level)


def test_estimators_need_neither_torch_nor_scipy() -> None:
    code = "import sys, rl.evaluation.estimators; print(*{'torch', 'scipy', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
