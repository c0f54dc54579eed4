"""Metrics of an update: merged over microbatches as if they were one, with numbers worked by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.corrections import MismatchSums
from rl.learner import Learner
from rl.learner.metrics import UpdateRecord, gap_metrics, last_update, mean_update, update_metrics
from rl.objectives.token_weights import WeightSums
from tests.learning import config, rollout

WEIGHTS = WeightSums(1, 1.0, 1.0, 0, 0.0, 0, 0, 1, 0)
AGREEMENT = MismatchSums(tokens=1, ratio=1.0, ratio_squared=1.0, capped=0, masked=0)


def record(
    means: Mapping[str, float], counts: Mapping[str, int], *, ratios: tuple[float, ...] = (1.0,), **options: Any
) -> UpdateRecord:
    none = {"tokens": 0, "sequences": 0, "positive": 0, "negative": 0, "entropy": 0}
    defaults = {
        "sums": {},
        "mismatch": AGREEMENT,
        "weights": WEIGHTS,
        "kl_sum": 0.0,
        "gaps_M": torch.zeros(0),
        "nonfinite_prompts": [],
    }
    return UpdateRecord(
        means=means, counts={**none, **counts}, ratios_N=torch.tensor(ratios), **{**defaults, **options}
    )


def test_each_mean_is_weighted_by_what_it_is_a_mean_of():
    # Tokens 1 and 3, positive 1 and 1, negative 0 and 2, sequences 1 and 2.
    first = record(
        {
            "policy/gate_mean": 0.2,
            "policy/gate_mean_positive": 0.2,
            "policy/gate_mean_negative": 1.0,
            "policy/log_ratio_variance": 0.3,
        },
        {"tokens": 1, "sequences": 1, "positive": 1},
    )
    second = record(
        {
            "policy/gate_mean": 0.6,
            "policy/gate_mean_positive": 0.8,
            "policy/gate_mean_negative": 0.5,
            "policy/log_ratio_variance": 0.9,
        },
        {"tokens": 3, "sequences": 2, "positive": 1, "negative": 2},
    )
    metrics = update_metrics([first, second])
    assert metrics["policy/gate_mean"] == pytest.approx((0.2 + 3 * 0.6) / 4)
    assert metrics["policy/gate_mean_positive"] == pytest.approx(0.5)
    assert metrics["policy/gate_mean_negative"] == 0.5  # the first microbatch has no negative token
    assert metrics["policy/log_ratio_variance"] == pytest.approx((0.3 + 2 * 0.9) / 3)


def test_extremes_and_percentiles_are_those_of_all_tokens_and_not_means_of_means():
    names = ("mean", "min", "p01", "p50", "p99", "max")
    parts = [(0.5, 0.6, 0.7), (1.0, 2.0)]
    records = [record({f"policy/ratio_{name}": -1.0 for name in names}, {"tokens": len(p)}, ratios=p) for p in parts]
    metrics = update_metrics(records)
    assert [metrics[f"policy/ratio_{name}"] for name in names] == pytest.approx([0.96, 0.5, 0.5, 0.7, 2.0, 2.0])


def test_a_metric_of_a_users_objective_has_its_extremes_by_name_and_else_the_token_mean():
    mine = [
        record({"policy/mine": 1.0, "policy/mine_min": 3.0, "policy/mine_max": 3.0}, {"tokens": 1}),
        record({"policy/mine": 4.0, "policy/mine_min": 2.0, "policy/mine_max": 5.0}, {"tokens": 2}),
    ]
    metrics = update_metrics(mine)
    assert (metrics["policy/mine"], metrics["policy/mine_min"], metrics["policy/mine_max"]) == (3.0, 2.0, 5.0)
    assert "policy/ratio_p50" not in metrics


def test_losses_and_penalties_are_shares_that_add_up():
    records = [record({}, {"tokens": 1}, sums={"loss/objective": part, "policy/kl": 0.25}) for part in (0.5, -0.125)]
    metrics = update_metrics(records)
    assert (metrics["loss/objective"], metrics["policy/kl"]) == (0.375, 0.5)


def test_one_microbatch_has_its_own_float32_means_to_the_last_bit():
    mean = float(torch.tensor(0.1))
    for tokens in (1, 3, 999_983):
        assert update_metrics([record({"policy/entropy": mean}, {"entropy": tokens})])["policy/entropy"] == mean


def test_the_distance_is_a_mean_over_response_tokens_of_those_outside_the_loss_too():
    # Sums of .3 over 2 tokens and .1 over 6, of which a mask has taken 5 out of the loss.
    parts = [record({}, {"tokens": 2, "entropy": 2}, kl_sum=0.3), record({}, {"tokens": 1, "entropy": 6}, kl_sum=0.1)]
    assert update_metrics(parts)["policy/approx_kl"] == pytest.approx(0.05)


def test_the_gap_is_over_the_tokens_of_all_updates():
    gaps = [record({}, {}, gaps_M=torch.tensor(values)) for values in ([0.25], [0.5, 0.75, 1.0])]
    assert gap_metrics(gaps) == {"rollout/logprob_gap_mean": 0.625, "rollout/logprob_gap_max": 1.0}
    assert gap_metrics([]) == gap_metrics([record({}, {})]) == {}


def test_gates_and_distance_of_the_last_update_stand_beside_the_means():
    reports = [
        {"policy/gate_mean": 1.0, "policy/approx_kl": 0.0, "policy/entropy": 2.0},
        {"policy/gate_mean": 0.5, "policy/approx_kl": 0.2, "policy/entropy": 1.0},
    ]
    assert last_update(reports) == {"policy/gate_mean_last": 0.5, "policy/approx_kl_last": 0.2}
    assert last_update(reports[:1]) == last_update([]) == {}


def test_a_metric_that_some_updates_lack_is_a_mean_over_the_others():
    # As that of tokens of an older policy: the first minibatch may have none, or alone have some.
    reports = [{"loss": 1.0}, {"loss": 2.0, "policy/gate_mean_stale": 0.5}, {"loss": 6.0}]
    for ordered in (reports, reports[::-1], reports[1:] + reports[:1]):
        assert mean_update(ordered) == {"loss": 3.0, "policy/gate_mean_stale": 0.5}
    assert mean_update([]) == {}


@pytest.mark.parametrize("with_stale", [(0, 1), (2, 3)], ids=["the first of two updates", "the second of two updates"])
def test_a_step_may_have_samples_of_an_older_policy_in_one_update_alone(
    dense_policy: Path, with_stale: tuple[int, ...]
):
    groups = [
        [replace(sample, stale_mask=sample.loss_mask) if number in with_stale else sample for sample in group]
        for number, group in enumerate(rollout())
    ]
    report = Learner(config(num_minibatches=2), dense_policy).step(groups)
    assert report.num_updates == 2 and report.metrics["policy/gate_mean_stale"] > 0
