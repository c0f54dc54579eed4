"""The fit of the soak bench, on samples worked by hand."""

from __future__ import annotations

import pytest

from bench.soak import MB, growth_of, slope


def test_growth_is_that_of_the_line_after_the_warm_up():
    rows = [(step, 100 * MB if step <= 100 else 100 * MB + (step - 100) * MB // 50, 7) for step in range(0, 501, 10)]
    growth = growth_of("learner", rows, 100)
    assert growth is not None
    assert growth.mb_per_100 == pytest.approx(2.0, abs=0.01) and growth.handles_per_100 == pytest.approx(0.0, abs=1e-9)
    assert growth.mean_mb == pytest.approx(104.1, abs=0.01)  # steps 110 to 500: .2 to 8 MB more


def test_a_process_that_did_not_live_through_the_run_has_no_growth():
    assert growth_of("late", [(150, MB, 1), (500, 2 * MB, 1)], 100) is None
    assert growth_of("early", [(0, MB, 1), (150, 2 * MB, 1)], 100) is None


def test_one_step_alone_has_no_slope():
    assert slope([(200, 1), (200, 9)], 100) == 0.0 == slope([], 100)
