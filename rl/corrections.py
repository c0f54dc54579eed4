"""Corrections of the mismatch between the engine that sampled (μ) and the learner (π_old): same weights, different numerics.

Importance sampling weights a token of the loss by π_old/μ in addition to π_θ/π_old (arXiv 2512.01374). Variants of the weight:
- Truncated importance sampling (TIS), `token_cap`: caps the weight.
- Masked importance sampling by token (as in IcePop), `token_band`: drops tokens with a ratio outside the band.
- Masked importance sampling by sequence, `sequence_band`: drops sequences with a geometric-mean ratio outside the band.

The weight multiplies the token's *gradient*. So it works with every objective, including custom ones, and keeps the loss's value.

The off-policy sequence mask, `off_policy_threshold`, takes sequences out of the loss that π_θ has moved away from. It changes with
every update. `target_kl` ends a step's updates when π_θ has moved too far; the learner does that.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl.config import CorrectionConfig
from rl.sapo import masked_log_ratio, sequence_means


def mismatch_weights(
    old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, config: CorrectionConfig
) -> Tensor:
    """Returns each token's factor of its gradient; 1 everywhere if all corrections are off.

    Args:
        old_logprobs_BT: log π_old, from the learner.
        rollout_logprobs_BT: log μ, from the engine, on the same tokens.
        mask_BT: True at response tokens.
        config: The corrections to apply. The denominators of the loss still count tokens that a mask drops.

    Returns:
        [B, T] weights without gradient, 1 outside the mask.
    """
    log_ratio_BT = masked_log_ratio(old_logprobs_BT, rollout_logprobs_BT, mask_BT).detach()
    ratio_BT = log_ratio_BT.exp()
    weights_BT = ratio_BT.clamp(max=config.token_cap) if config.token_cap else torch.ones_like(ratio_BT)
    if config.token_band is not None:
        weights_BT = weights_BT * _inside(ratio_BT, config.token_band)
    if config.sequence_band is not None:
        mean_ratio_B1 = sequence_means(log_ratio_BT, mask_BT).exp()[:, None]
        weights_BT = weights_BT * _inside(mean_ratio_B1, config.sequence_band)
    return weights_BT.masked_fill(~mask_BT, 1.0)


def off_policy_mask(
    logprobs_BT: Tensor, reference_BT: Tensor, advantages: Tensor, mask_BT: Tensor, threshold: float
) -> Tensor:
    """Returns the mask without negative sequences that the policy has moved away from (DeepSeek-V3.2, arXiv 2512.02556).

    A sequence leaves the loss if its advantage is negative and the mean over its tokens of log π_old/π_θ exceeds the threshold δ.
    Such a sequence is unlikely already. SAPO's collapses on agents were traced to their gradients (arXiv 2602.21534).

    Args:
        logprobs_BT: log π_θ; no gradient flows from the mask.
        reference_BT: log π_old, of the learner or of the engine.
        advantages: [B]; or [B, T], where the tokens with a negative advantage leave.
        mask_BT: True at response tokens. The denominators of the loss still count those that leave.
        threshold: δ > 0 in nats per token; 0 switches the mask off.
    """
    if not threshold:
        return mask_BT
    log_ratio_BT = masked_log_ratio(logprobs_BT.detach(), reference_BT, mask_BT)
    is_far_B = -sequence_means(log_ratio_BT, mask_BT) > threshold
    negative = advantages[:, None] < 0 if advantages.dim() == 1 else advantages < 0
    return mask_BT & ~(is_far_B[:, None] & negative)


def scale_gradient(logprobs_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Returns the same values to the last bit, with gradients multiplied by the weights."""
    fixed_BT = logprobs_BT.detach()
    return fixed_BT + weights_BT * (logprobs_BT - fixed_BT)


class MismatchSums(NamedTuple):
    """Sums over the tokens of one microbatch, with ρ = π_old/μ."""

    tokens: int
    ratio: float
    """Σ ρ."""
    ratio_squared: float
    """Σ ρ²."""
    capped: int
    """Tokens whose weight the cap reduced."""
    masked: int
    """Tokens whose gradient was dropped."""


def mismatch_sums(
    old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, weights_BT: Tensor, mask_BT: Tensor
) -> MismatchSums:
    """Returns the sums for `mismatch_metrics` over the response tokens of one microbatch."""
    ratio_N = masked_log_ratio(old_logprobs_BT, rollout_logprobs_BT, mask_BT).exp()[mask_BT].double()
    weights_N = weights_BT[mask_BT].double()
    capped_N = (weights_N > 1) & (weights_N < ratio_N)
    return MismatchSums(
        tokens=len(ratio_N),
        ratio=float(ratio_N.sum()),
        ratio_squared=float(ratio_N.square().sum()),
        capped=int(capped_N.sum()),
        masked=int((weights_N == 0).sum()),
    )


def mismatch_metrics(sums: Sequence[MismatchSums]) -> dict[str, float]:
    """Returns the distance between engine and learner, and the effect of the corrections, over all microbatches.

    Returns:
        `rollout/mismatch_ess`: the effective sample size (Σ ρ)² / (N Σ ρ²) of ρ = π_old/μ over the N tokens, 1 without mismatch.
        `rollout/mismatch_capped`: the share of tokens whose ρ the cap reduced. `rollout/mismatch_masked`: the share of tokens
        whose gradient was dropped. Without tokens: 1, 0 and 0.
    """
    total = MismatchSums(*(sum(column) for column in zip(*sums, strict=True)))
    if not total.tokens:
        return {"rollout/mismatch_ess": 1.0, "rollout/mismatch_capped": 0.0, "rollout/mismatch_masked": 0.0}
    return {
        "rollout/mismatch_ess": total.ratio**2 / (total.tokens * total.ratio_squared),
        "rollout/mismatch_capped": total.capped / total.tokens,
        "rollout/mismatch_masked": total.masked / total.tokens,
    }


def _inside(ratio: Tensor, band: tuple[float, float]) -> Tensor:
    low, high = band
    return ((ratio >= low) & (ratio <= high)).to(ratio.dtype)
