"""Weights for the mismatch between engine and learner, with numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rl.config import CorrectionConfig
from rl.corrections import mismatch_metrics, mismatch_sums, mismatch_weights, off_policy_mask, scale_gradient
from rl.sapo import sapo_loss

# π_old/μ of two responses; the last token of the second lies outside the mask.
RATIOS = torch.tensor([[0.5, 2.0, 1.0], [4.0, 1.0, 9.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
ROLLOUT = torch.full((2, 3), -1.0)
OLD = ROLLOUT + RATIOS.log()


def weights(**options: object) -> list[list[float]]:
    return mismatch_weights(OLD, ROLLOUT, MASK, CorrectionConfig(**options)).tolist()


def test_without_corrections_every_weight_is_1():
    assert weights() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]


def test_truncated_weights_are_the_ratio_up_to_the_cap():
    assert weights(token_cap=3.0)[0] == pytest.approx([0.5, 2.0, 1.0])
    assert weights(token_cap=3.0)[1] == pytest.approx([3.0, 1.0, 1.0])


def test_tokens_outside_the_band_are_dropped_on_either_side():
    assert weights(token_band=(0.6, 3.0)) == [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]


def test_responses_are_dropped_whole_by_their_geometric_mean():
    # (0.5 · 2 · 1)^⅓ = 1 stays, √(4 · 1) = 2 goes.
    assert weights(sequence_band=(0.9, 1.1)) == [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]


def test_corrections_multiply():
    assert weights(token_cap=3.0, token_band=(0.6, 5.0))[0] == pytest.approx([0.0, 2.0, 1.0])
    assert weights(token_cap=3.0, token_band=(0.6, 5.0))[1] == pytest.approx([3.0, 1.0, 1.0])


def test_whatever_lies_outside_the_mask_has_weight_1():
    for outside in (math.inf, -math.inf, math.nan):
        dirty = OLD.masked_fill(~MASK, outside)
        assert mismatch_weights(dirty, ROLLOUT, MASK, CorrectionConfig(token_cap=3.0)).isfinite().all()


def test_gradients_are_scaled_and_values_are_not_touched():
    logprobs = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scaled = scale_gradient(logprobs, torch.tensor([[0.0, 2.0, 1.0], [0.5, 1.0, 1.0]]))
    assert torch.equal(scaled, logprobs)
    scaled.sum().backward()
    assert logprobs.grad.tolist() == [[0.0, 2.0, 1.0], [0.5, 1.0, 1.0]]


def test_on_policy_sapo_under_a_truncated_weight_has_gradient_minus_weight_times_advantage():
    logprobs = OLD.clone().requires_grad_()
    truncated = mismatch_weights(OLD, ROLLOUT, MASK, CorrectionConfig(token_cap=3.0))
    loss, _ = sapo_loss(scale_gradient(logprobs, truncated), OLD, torch.tensor([3.0, -1.0]), MASK)
    loss.backward()
    # −w A / (N |y|): A = 3, 1/6 each; A = −1, 1/4 each.
    assert logprobs.grad[0].tolist() == pytest.approx([-0.25, -1.0, -0.5])
    assert logprobs.grad[1].tolist() == pytest.approx([0.75, 0.25, 0.0])


def test_metrics_are_those_worked_by_hand():
    its = mismatch_weights(OLD, ROLLOUT, MASK, CorrectionConfig(token_cap=3.0, token_band=(0.6, 5.0)))
    # ρ = 0.5, 2, 1, 4, 1: Σ = 8.5, Σ² = 22.25; one of five is capped (4 → 3), one dropped (0.5).
    assert mismatch_metrics([mismatch_sums(OLD, ROLLOUT, its, MASK)]) == pytest.approx(
        {
            "rollout/mismatch_ess": 8.5**2 / (5 * 22.25),
            "rollout/mismatch_capped": 0.2,
            "rollout/mismatch_masked": 0.2,
        }
    )
    by_row = [mismatch_sums(OLD[i : i + 1], ROLLOUT[i : i + 1], its[i : i + 1], MASK[i : i + 1]) for i in range(2)]
    assert mismatch_metrics(by_row) == mismatch_metrics([mismatch_sums(OLD, ROLLOUT, its, MASK)])
    nothing = mismatch_metrics([mismatch_sums(OLD, ROLLOUT, its, torch.zeros_like(MASK))])
    assert list(nothing.values()) == [1.0, 0.0, 0.0]


# Means of log π_old/π_θ: ln 2, ln 2 and ½ ln 2 = .347 for three responses with A < 0, A > 0 and A < 0.
FAR = -torch.tensor([[2.0, 2.0], [4.0, 1.0], [2.0, 1.0]]).log()
OF_EACH = torch.tensor([-1.0, 1.0, -0.5])
BOTH = torch.ones(3, 2, dtype=torch.bool)


def left(threshold: float, advantages: torch.Tensor = OF_EACH, mask: torch.Tensor = BOTH) -> list[list[bool]]:
    return off_policy_mask(FAR - 1, torch.full((3, 2), -1.0), advantages, mask, threshold).tolist()


def test_negative_responses_leave_the_loss_whole_beyond_the_threshold():
    assert left(0.5) == [[False, False], [True, True], [True, True]]
    assert left(0.3) == [[False, False], [True, True], [False, False]]
    assert left(0.7) == left(0) == [[True, True]] * 3  # ln 2 = .693; 0 is off


def test_the_mask_is_over_the_tokens_of_the_response():
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    assert left(0.5, mask=mask)[2] == [False, False]  # ln 2 over its single token
    assert left(1.0, mask=mask)[2] == [True, False]


def test_with_advantages_of_single_tokens_the_negative_ones_leave():
    by_token = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    assert left(0.5, by_token) == [[False, True], [True, True], [True, True]]


def test_the_mask_does_not_see_what_lies_outside_and_passes_no_gradient():
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    for outside in (math.inf, -math.inf, math.nan):
        dirty = (FAR - 1).masked_fill(~mask, outside).requires_grad_()
        found = off_policy_mask(dirty, torch.full((3, 2), -1.0), OF_EACH, mask, 0.5)
        assert found.tolist() == [[False, False], [True, True], [False, False]]
        assert not found.requires_grad


def test_a_response_that_has_become_impossible_leaves_without_a_trace_in_the_gradient():
    logprobs = torch.tensor([[-math.inf, -1.0], [-1.0, -1.0]], requires_grad=True)
    old, advantages, both = torch.full((2, 2), -1.0), torch.tensor([-1.0, 1.0]), torch.ones(2, 2, dtype=torch.bool)
    found = off_policy_mask(logprobs, old, advantages, both, 0.5)
    loss, _ = sapo_loss(logprobs, old, advantages, found, num_sequences=2)
    loss.backward()
    # −A / (N |y|) = −1/4 for the other; N still counts the one that left.
    assert logprobs.grad.tolist() == [[0.0, 0.0], [-0.25, -0.25]]
