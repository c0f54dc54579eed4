"""Soft Adaptive Policy Optimization (arXiv 2511.20347): a pure function from log-probabilities to a loss.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) is finite in every dtype that a loss is computed in; beyond it the gate is 0 anyway."""


def sapo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negated objective of Eq. 5 and 6: each token's ratio r passes a gate f(r) = 4/τ · σ(τ (r − 1)).

        loss = − 1/N Σ_i A_i · 1/|y_i| Σ_t f(r_it),    r_it = exp(logprobs_it − old_logprobs_it)

    Its gradient with respect to a token's log-probability is −A · r · sech²(τ (r − 1) / 2) / (N |y_i|): exactly −A at r = 1
    for every τ, fading softly on both sides.

    Args:
        logprobs_BT: Log-probabilities under the policy that learns; may hold anything, infinities included, outside the mask.
        old_logprobs_BT: The same under the policy that sampled; no gradient flows into it.
        advantages_B: One advantage per sequence, the same for all of its tokens.
        mask_BT: True (or 1) at response tokens. A sequence without any contributes nothing.
        tau_pos: Gate temperature where the advantage is positive.
        tau_neg: Gate temperature elsewhere; larger damps negative advantages, the noisier ones, sooner (Eq. 9).
        num_sequences: The N to divide by. Default B. Pass the count of the whole minibatch when this is one of several
            microbatches: their losses then add up to the minibatch's.

    Returns:
        The loss, a scalar to minimise, and detached scalar metrics of this batch (see `gate_metrics`).

    Raises:
        ValueError: If a temperature is not positive, or shapes differ.
    """
    for name, tau in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
        if not tau > 0:
            raise ValueError(f"{name} must be > 0, got {tau}")
    check_shapes(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    mask_BT = mask_BT.bool()
    log_ratio_BT = masked_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    advantages_B1 = advantages_B.to(log_ratio_BT.dtype)[:, None]
    tau_B1 = torch.full_like(advantages_B1, tau_neg).masked_fill(advantages_B1 > 0, tau_pos)

    ratio_BT = log_ratio_BT.exp()
    gate_BT = torch.sigmoid(tau_B1 * (ratio_BT - 1)) * (4 / tau_B1)
    objective_BT = torch.where(mask_BT, gate_BT * advantages_B1, 0)
    token_mean_B = objective_BT.sum(1) / mask_BT.sum(1).clamp(min=1)
    loss = -token_mean_B.sum() / (num_sequences or len(mask_BT))
    return loss, gate_metrics(log_ratio_BT.detach(), tau_B1, mask_BT)


def masked_log_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log r, 0 outside the mask, clamped to ±MAX_LOG_RATIO.

    The mask comes first: an infinity outside of it would turn to NaN in the backward pass, where 0 · inf = NaN.
    """
    log_ratio_BT = logprobs_BT.masked_fill(~mask_BT, 0) - old_logprobs_BT.detach().masked_fill(~mask_BT, 0)
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def gate_metrics(log_ratio_BT: Tensor, tau_B1: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled (Section 4.1).

    Args:
        log_ratio_BT: log r, without gradient.
        tau_B1: The gate temperature of each sequence.
        mask_BT: True at response tokens.

    Returns:
        `ratio_mean`, `ratio_min`, `ratio_max` over tokens; `gate_mean`, the mean of w = sech²(τ (r − 1) / 2);
        `gate_below_half`, the share of tokens with w < 1/2; `log_ratio_variance`, Var_i inside a response, averaged over responses.
        Zeros (ones for ratio and gate) where there is no token.
    """
    ratio_BT = log_ratio_BT.exp()
    weight_BT = 1 / torch.cosh(tau_B1 * (ratio_BT - 1) / 2).square()
    ratio_N, weight_N = ratio_BT[mask_BT], weight_BT[mask_BT]
    if not len(ratio_N):
        one, zero = ratio_BT.new_tensor(1.0), ratio_BT.new_tensor(0.0)
        names = ("ratio_mean", "ratio_min", "ratio_max", "gate_mean")
        return {**dict.fromkeys(names, one), "gate_below_half": zero, "log_ratio_variance": zero}
    length_B = mask_BT.sum(1)
    mean_B1 = (log_ratio_BT.sum(1) / length_B.clamp(min=1))[:, None]
    variance_B = torch.where(mask_BT, (log_ratio_BT - mean_B1).square(), 0).sum(1) / length_B.clamp(min=1)
    return {
        "ratio_mean": ratio_N.mean(),
        "ratio_min": ratio_N.min(),
        "ratio_max": ratio_N.max(),
        "gate_mean": weight_N.mean(),
        "gate_below_half": (weight_N < 0.5).to(weight_N.dtype).mean(),
        "log_ratio_variance": variance_B[length_B > 0].mean(),
    }


def gate_weight(ratio: float, tau: float) -> float:
    """w(r) = sech²(τ (r − 1) / 2): the weight of a token's gradient relative to the plain policy gradient's r."""
    return 1 / math.cosh(tau * (ratio - 1) / 2) ** 2


def check_shapes(logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor) -> None:
    """Raises ValueError unless the three matrices agree and there is one advantage per row."""
    shapes = [tuple(x.shape) for x in (logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)]
    if logprobs_BT.dim() != 2 or not shapes[0] == shapes[1] == shapes[3] or shapes[2] != shapes[0][:1]:
        raise ValueError(
            "logprobs, old_logprobs and mask must be [B, T] and advantages [B], got "
            f"{shapes[0]}, {shapes[1]}, {shapes[3]} and {shapes[2]}"
        )
