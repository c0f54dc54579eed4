"""The fit of the watchdog on the grid's runs, with curves made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gates.watchdog import Outcome, alarm_at, bounds_beyond, fit, halved_at, is_healthy, outcome
from rl.watchdog import Sign

RISE = Sign(metric="policy/entropy", kind="rise", bound=9.0, text="{value}")
FALL = Sign(metric="reward/mean", kind="fall", bound=0.1, text="{value}")


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


def test_a_bound_lies_beyond_what_healthy_runs_have_shown():
    # The rise of the healthy run ends at 1.2, its reward never falls below 1.
    assert [sign.bound for sign in bounds_beyond([HEALTHY, COLLAPSED], [RISE, FALL], 1.5)] == pytest.approx(
        [1.8, 2 / 3]
    )


def test_lead_is_from_the_alarm_to_the_halved_score():
    # Bound 1.3: the mean of steps 7 to 11 is 1.4 and the first before is 1, so the alarm is at step 11; halved at 25.
    (rise,) = bounds_beyond([HEALTHY], [RISE], 1.3 / 1.2)
    assert alarm_at(COLLAPSED, [rise], 1) == 11
    assert outcome([HEALTHY, COLLAPSED], [rise], 1) == Outcome(
        collapses=1, announced=1, leads=[14], healthy=1, false_alarms=0
    )


def test_an_alarm_in_a_healthy_run_is_false():
    early = Sign(metric="policy/entropy", kind="rise", bound=1.1, text="{value}")
    assert outcome([HEALTHY], [early], 1).false_alarms == 1


def test_the_fit_announces_the_collapse_without_a_false_alarm():
    signs, needed = fit([HEALTHY, COLLAPSED])
    found = outcome([HEALTHY, COLLAPSED], signs, needed)
    assert (found.announced, found.false_alarms) == (1, 0)
