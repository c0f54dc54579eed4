"""The weights of tokens off-policy and their statistics, with numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl.objectives import OBJECTIVES, accepted
from rl.objectives.token_weights import WeightSums, token_weights, weight_metrics, weight_sums

ADVANTAGES = torch.tensor([1.0, -1.0, 0.0])
RATIOS = torch.tensor([[2.0, 1.0], [0.25, 0.5], [3.0, 3.0]])
MASK = torch.tensor([[True, True], [True, True], [True, False]])


def weights(name: str, left: Tensor = MASK) -> Tensor:
    objective = OBJECTIVES[name]
    counts = accepted(objective, {"num_sequences": 3, "num_tokens": 5})
    old = torch.full((3, 2), -1.0)
    new = (old + RATIOS.log()).requires_grad_()
    loss, _ = objective(new, old, ADVANTAGES, left, **counts)
    (gradient,) = torch.autograd.grad(loss, new)
    return token_weights(objective, gradient, old, ADVANTAGES, MASK, counts)


def sapo(ratio: float, tau: float) -> float:
    return ratio / math.cosh(tau * (ratio - 1) / 2) ** 2


EXPECTED = {
    "policy_gradient": [2.0, 1.0, 0.25, 0.5],
    "sapo": [sapo(2, 1), 1.0, sapo(0.25, 1.05), sapo(0.5, 1.05)],
    "grpo": [0.0, 1.0, 0.0, 0.0],
    "cispo": [2.0, 1.0, 0.25, 0.5],
    "gspo": [0.0, 0.0, 0.0, 0.0],  # √2 and √⅛ are far outside
    "sapo_log": [
        1 / math.cosh(math.log(2) / 2) ** 2,
        1.0,
        *(1 / math.cosh(1.05 * math.log(r) / 2) ** 2 for r in (4, 2)),
    ],
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_weight_is_the_gradient_over_the_one_on_policy(name: str):
    found = weights(name)
    assert found[:2].flatten().tolist() == pytest.approx(EXPECTED[name], abs=1e-6)
    assert found[2].isnan().all(), "without an advantage there is no weight"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_on_policy_every_weight_is_1(name: str):
    objective = OBJECTIVES[name]
    counts = accepted(objective, {"num_sequences": 3, "num_tokens": 5})
    old = torch.full((3, 2), -1.0).requires_grad_()
    loss, _ = objective(old, old.detach(), ADVANTAGES, MASK, **counts)
    (gradient,) = torch.autograd.grad(loss, old)
    assert token_weights(objective, gradient, old, ADVANTAGES, MASK, counts)[:2].flatten().tolist() == [1.0] * 4


def test_sums_and_metrics_are_those_worked_by_hand():
    stale = torch.tensor([[False, True], [True, False], [True, True]])
    sums = weight_sums(weights("policy_gradient"), RATIOS.log(), stale, ADVANTAGES, (MASK, MASK))
    # ω = r: 2 + 1 + .25 + .5 = 3.75; squares 4 + 1 + .0625 + .25. Stale: 1 and .25, whose ω / r is 1 each.
    assert sums == pytest.approx((4, 3.75, 5.3125, 2, 2.0, 1, 1, 3, 0))
    assert weight_metrics([sums]) == pytest.approx(
        {
            "policy/effective_sample_size": 3.75**2 / (4 * 5.3125),
            "policy/gate_mean_stale": 1.0,
            "policy/negative_below_half": 1.0,  # (.25 + .5) / 2
            "policy/sequences_masked": 0.0,
        }
    )


def test_a_dropped_sequence_has_weight_0_and_is_counted():
    left = torch.tensor([[True, True], [False, False], [True, False]])
    found = weights("policy_gradient", left)
    assert found[1].tolist() == [0.0, 0.0]
    sums = weight_sums(found, RATIOS.log(), torch.zeros(3, 2, dtype=torch.bool), ADVANTAGES, (MASK, left))
    assert weight_metrics([sums])["policy/sequences_masked"] == pytest.approx(1 / 3)


def test_microbatches_are_merged_as_if_they_were_one():
    one = WeightSums(2, 2.0, 2.0, 0, 0.0, 1, 0, 2, 0)
    other = WeightSums(2, 1.0, 1.0, 1, 0.5, 3, 2, 2, 1)
    assert weight_metrics([one, other]) == pytest.approx(
        {
            "policy/effective_sample_size": 9 / (4 * 3),
            "policy/gate_mean_stale": 0.5,
            "policy/negative_below_half": 0.5,
            "policy/sequences_masked": 0.25,
        }
    )


def test_without_tokens_the_sample_is_whole():
    nothing = WeightSums(0, 0.0, 0.0, 0, 0.0, 0, 0, 0, 0)
    assert weight_metrics([nothing]) == {
        "policy/effective_sample_size": 1.0,
        "policy/negative_below_half": 0.0,
        "policy/sequences_masked": 0.0,
    }
