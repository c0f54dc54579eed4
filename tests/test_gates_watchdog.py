"""The fit of the watchdog on the grid's runs, with curves made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gates.watchdog import Outcome, alarm_at, fit, halved_at, is_healthy, outcome
from rl.watchdog import Sign


def run(key: str, held_out: list[float], entropy: list[float], reward: list[float] | None = None) -> dict[str, Any]:
    """A run of one step per value, with a held-out measurement every five steps from 0."""
    curves = {"entropy": entropy, "reward": reward or [1.0] * len(entropy)}
    return {"key": key, "held_out": [[5 * i, score] for i, score in enumerate(held_out)], "curves": curves}


HEALTHY = run("healthy", [0.5, 0.5, 0.5, 0.6, 0.6], [1.0] * 10 + [1.2] * 10)
COLLAPSED = run("collapsed", [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0], [1.0] * 10 + [3.0] * 20)


def test_the_score_has_halved_at_the_measurement_that_makes_it_so():
    # Means of three: .5, .5, .333, .167: the fourth is of the measurements at 15, 20 and 25.
    assert halved_at(COLLAPSED) == 25
    assert halved_at(HEALTHY) is None
    assert is_healthy(HEALTHY) and not is_healthy(COLLAPSED)


def test_a_run_that_fell_and_came_back_is_neither_healthy_nor_collapsed():
    back = run("back", [0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.5, 0.5, 0.5], [1.0] * 40)
    assert halved_at(back) is None and not is_healthy(back)


def test_a_run_whose_score_once_halved_is_not_healthy():
    # Means of three never fall below 3/4 of their best: .6, .6, .5, .5, .5. One measurement is at .3.
    assert not is_healthy(run("dip", [0.6, 0.6, 0.6, 0.29, 0.6, 0.6, 0.6], [1.0] * 30))


def test_lead_is_from_the_alarm_to_the_halved_score():
    # Bound 1.3: the mean of steps 7 to 11 is 1.4 and the first before is 1, so the alarm is at step 11; halved at 25.
    rise = Sign(metric="policy/entropy", kind="rise", bound=1.3, text="{value}")
    assert alarm_at(COLLAPSED, [rise]) == 11
    assert outcome([HEALTHY, COLLAPSED], [rise]) == Outcome(collapses=1, leads=[14], healthy=1, false_alarms=0)


def test_an_alarm_in_a_healthy_run_is_false():
    early = Sign(metric="policy/entropy", kind="rise", bound=1.1, text="{value}")
    assert outcome([HEALTHY], [early]).false_alarms == 1


def test_a_bound_lies_three_deviations_beyond_the_extremes_of_healthy_runs():
    # Rises to 1.2 and 1.5: their logarithms have a mean of .29389 and a deviation of .15778, so e^(.29389 + .47334).
    # In windows of ten steps the collapse shows at step 16 (2.2 against 1), later than in those of five.
    other = run("other", [0.5, 0.5, 0.5, 0.6, 0.6], [1.0] * 10 + [1.5] * 10)
    (sign,) = fit([HEALTHY, other, COLLAPSED])
    assert (sign.metric, sign.kind, sign.window) == ("policy/entropy", "rise", 5)
    assert sign.bound == pytest.approx(2.1538, abs=1e-4)
    assert outcome([HEALTHY, other, COLLAPSED], [sign]).leads == [12]  # the alarm is at step 13: 2.2


def test_without_a_collapse_no_sign_is_chosen():
    assert fit([HEALTHY, HEALTHY]) == []


def test_a_bound_lies_at_the_most_extreme_healthy_run_if_that_is_farther():
    # 19 rises to 1.2 and one to 2: e^(.20787 + 3 · .11423) = 1.734 is below 2. The collapse rises to 3.
    alike = [run(str(number), [0.5] * 5, [1.0] * 10 + [1.2] * 10) for number in range(19)]
    far = run("far", [0.5] * 5, [1.0] * 10 + [2.0] * 10)
    healthy = [*alike, far]
    (sign,) = fit([*healthy, COLLAPSED])
    assert sign.bound == pytest.approx(2.0, rel=1e-8) and sign.bound > 2.0
    assert outcome([*healthy, COLLAPSED], [sign]) == Outcome(collapses=1, leads=[12], healthy=20, false_alarms=0)
