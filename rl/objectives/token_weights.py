"""The weights that an objective gives to tokens off-policy, measured by its gradient; so custom objectives have them, too.

A token's weight ω is the gradient with respect to its log-probability, over the one that it would have on-policy. Policy gradients
have ω = r, SAPO r · sech²(τ (r − 1) / 2), a clip ω = r or 0. Tokens without an advantage have no weight and are not counted.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl.objectives.contract import Objective
from rl.sapo import sequence_means


class WeightSums(NamedTuple):
    """Sums over one microbatch."""

    tokens: int
    """Tokens with an advantage."""
    weight: float
    """Σ ω."""
    weight_squared: float
    """Σ ω²."""
    stale_tokens: int
    """Tokens among these that an older policy version sampled."""
    stale_gate: float
    """Σ ω / r over these."""
    negative_sequences: int
    """Sequences with a negative mean advantage."""
    negative_below_half: int
    """Sequences among these with a mean ω below 1/2."""
    sequences: int
    """Sequences with tokens."""
    masked_sequences: int
    """Sequences among these that the off-policy sequence mask has dropped, in whole or in part."""


def token_weights(
    objective: Objective,
    gradient_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages: Tensor,
    mask_BT: Tensor,
    counts: Mapping[str, object],
) -> Tensor:
    """Returns [B, T] ω of each token; NaN without an advantage, and outside the mask.

    Args:
        objective: The objective.
        gradient_BT: The gradient of its loss with respect to the log-probabilities.
        old_logprobs_BT: Log-probabilities under the policy that sampled.
        advantages: [B], or [B, T].
        mask_BT: True at response tokens.
        counts: The keyword arguments that the objective was called with.
    """
    with torch.enable_grad():
        on_policy_BT = old_logprobs_BT.detach().masked_fill(~mask_BT, 0).requires_grad_()
        loss, _ = objective(on_policy_BT, old_logprobs_BT, advantages, mask_BT, **counts)
        (reference_BT,) = torch.autograd.grad(loss, on_policy_BT)
    counted_BT = mask_BT & (reference_BT != 0)
    return torch.where(counted_BT, gradient_BT / reference_BT, torch.nan)


def weight_sums(
    weights_BT: Tensor,
    log_ratio_BT: Tensor,
    stale_BT: Tensor,
    advantages: Tensor,
    masks: tuple[Tensor, Tensor],
) -> WeightSums:
    """Returns the sums for `weight_metrics` of one microbatch.

    Args:
        weights_BT: ω from `token_weights`.
        log_ratio_BT: log r.
        stale_BT: True at tokens of an older policy version.
        advantages: [B], or [B, T].
        masks: [B, T] each: response tokens, and those that the off-policy sequence mask has left.
    """
    mask_BT, left_BT = masks
    counted_BT = weights_BT.isfinite()
    weights_BT = torch.where(counted_BT, weights_BT, 0).double()
    stale_BT = stale_BT & counted_BT
    mean_B = advantages if advantages.dim() == 1 else sequence_means(advantages, mask_BT)
    negative_B = counted_BT.any(1) & (mean_B < 0)
    below_B = negative_B & (sequence_means(weights_BT, counted_BT) < 0.5)
    numbers = [
        counted_BT.sum(),
        weights_BT.sum(),
        weights_BT.square().sum(),
        stale_BT.sum(),
        torch.where(stale_BT, weights_BT / log_ratio_BT.double().exp(), 0).sum(),
        negative_B.sum(),
        below_B.sum(),
        mask_BT.any(1).sum(),
        (mask_BT & ~left_BT).any(1).sum(),
    ]
    # One transfer from the device instead of nine.
    values = torch.stack([number.double() for number in numbers]).tolist()
    kinds = WeightSums.__annotations__.values()
    return WeightSums(*(int(value) if kind == "int" else value for value, kind in zip(values, kinds, strict=True)))


def weight_metrics(sums: Sequence[WeightSums]) -> dict[str, float]:
    """Returns the metrics of an update, over all microbatches.

    Returns:
        `policy/effective_sample_size`: (Σ ω)² / (n Σ ω²) over the n tokens with an advantage, 1 on-policy.
        `policy/gate_mean_stale`: the mean of ω / r over tokens of an older policy version; only if there are any.
        `policy/negative_below_half`: of the sequences with a negative advantage, the share with a mean ω below 1/2.
        `policy/sequences_masked`: the share of sequences that the off-policy sequence mask has dropped.
    """
    total = WeightSums(*(sum(column) for column in zip(*sums, strict=True)))
    effective = total.weight**2 / (total.tokens * total.weight_squared) if total.weight_squared else 0.0
    metrics = {
        "policy/effective_sample_size": effective if total.tokens else 1.0,
        "policy/negative_below_half": total.negative_below_half / max(1, total.negative_sequences),
        "policy/sequences_masked": total.masked_sequences / max(1, total.sequences),
    }
    if total.stale_tokens:
        metrics["policy/gate_mean_stale"] = total.stale_gate / total.stale_tokens
    return metrics
