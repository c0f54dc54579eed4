"""Objectives with a soft gate: SAPO's with other shapes or another argument, of whole sequences (SSPO), and VESPO.

A gate of temperature τ is f = 2/τ · F(u) with u = τ x / 2, where x is a token's distance from on-policy: r − 1, or log r. F rises
from 0. Its slope F' is 1 at u = 0 and falls to 0 on both sides. So on-policy the gradient is the policy gradient, for every τ and
shape. SAPO is F(u) = 1 + tanh u with x = r − 1.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.objectives.clipped import token_mean
from rl.sapo import MAX_LOG_RATIO, check_temperatures, gate_metrics, masked_inputs, sequence_means, temperatures


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of a gate. All but softsign agree to second order: 1 − F'(u) ≈ u²."""

    rise: Callable[[Tensor], Tensor]
    """F, from 0 to twice F(0)."""
    slope: Callable[[Tensor], Tensor]
    """F', 1 at 0."""


def _sigmoid(u: Tensor) -> Tensor:
    return 2 * torch.sigmoid(2 * u)


def _sigmoid_slope(u: Tensor) -> Tensor:
    return 1 / torch.cosh(u).square()


def _erf(u: Tensor) -> Tensor:
    return math.sqrt(math.pi) / 2 * (1 + torch.erf(u))


def _erf_slope(u: Tensor) -> Tensor:
    return torch.exp(-u.square())


def _arctan(u: Tensor) -> Tensor:
    return math.pi / 2 + torch.atan(u)


def _arctan_slope(u: Tensor) -> Tensor:
    return 1 / (1 + u.square())


def _softsign(u: Tensor) -> Tensor:
    return 1 + u / (1 + u.abs())


def _softsign_slope(u: Tensor) -> Tensor:
    return 1 / (1 + u.abs()).square()


SIGMOID = Shape(rise=_sigmoid, slope=_sigmoid_slope)
"""SAPO's own: sech² u, which fades exponentially."""
ERF = Shape(rise=_erf, slope=_erf_slope)
"""exp(−u²), which fades fastest."""
ARCTAN = Shape(rise=_arctan, slope=_arctan_slope)
"""1 / (1 + u²), a heavy tail."""
SOFTSIGN = Shape(rise=_softsign, slope=_softsign_slope)
"""1 / (1 + |u|)², a heavy tail with a kink at on-policy."""


def soft_gate_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    shape: Shape,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SAPO with another gate (arXiv 2602.19345): f(r) = 2/τ · F(τ (r − 1) / 2); mean over sequences of the mean over tokens.

    The shape SIGMOID gives SAPO itself. The other arguments are those of `sapo_loss`.
    """
    check_temperatures(tau_pos, tau_neg)
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    tau_B1 = temperatures(advantages_B1, tau_pos, tau_neg)
    u_BT = tau_B1 * (log_ratio_BT.exp() - 1) / 2
    loss = -sequence_means(2 / tau_B1 * shape.rise(u_BT) * advantages_B1, mask_BT).sum()
    metrics = gate_metrics(log_ratio_BT, shape.slope(u_BT.detach()), advantages_B1, mask_BT)
    return loss / (num_sequences or len(mask_BT)), metrics


def one_sided_gate_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    shape: Shape = SIGMOID,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SAPO with a gate on the favoured side alone: r > 1 where A > 0, r < 1 where A < 0. Elsewhere it is the policy gradient.

    SAPO also damps a good token that has fallen and a bad one that has risen, so nothing brings them back. PPO's clip leaves these
    alone, and so does this gate: f(r) = 2/τ · F(τ (r − 1) / 2) on the favoured side, and r − 1 + f(1) on the other, with the same
    slope at 1. The other arguments are those of `sapo_loss`.
    """
    check_temperatures(tau_pos, tau_neg)
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    tau_B1 = temperatures(advantages_B1, tau_pos, tau_neg)
    distance_BT = log_ratio_BT.exp() - 1
    favoured_BT = distance_BT * advantages_B1 > 0
    u_BT = tau_B1 * torch.where(favoured_BT, distance_BT, 0) / 2
    # On each side one of the two terms is constant.
    objective_BT = 2 / tau_B1 * shape.rise(u_BT) + torch.where(favoured_BT, 0, distance_BT)
    loss = -sequence_means(objective_BT * advantages_B1, mask_BT).sum() / (num_sequences or len(mask_BT))
    weight_BT = torch.where(favoured_BT, shape.slope(u_BT.detach()), 1.0)
    return loss, gate_metrics(log_ratio_BT, weight_BT, advantages_B1, mask_BT)


def log_gate_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    shape: Shape = SIGMOID,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SAPO with its gate on the log ratio: f(r) = 2/τ · F(τ log r / 2).

    The gradient with respect to a token's log-probability is −A · F'(τ log r / 2) / (N |y|). It is the same at r and 1/r. SAPO's
    factor r · sech²(τ (r − 1) / 2) grows up to r ≈ 2. The other arguments are those of `sapo_loss`.
    """
    check_temperatures(tau_pos, tau_neg)
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    tau_B1 = temperatures(advantages_B1, tau_pos, tau_neg)
    u_BT = tau_B1 * log_ratio_BT / 2
    loss = -sequence_means(2 / tau_B1 * shape.rise(u_BT) * advantages_B1, mask_BT).sum()
    weight_BT = shape.slope(u_BT.detach()) / log_ratio_BT.detach().exp()
    return loss / (num_sequences or len(mask_BT)), gate_metrics(log_ratio_BT, weight_BT, advantages_B1, mask_BT)


def sspo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SSPO (arXiv 2602.19327): a sequence's weight is the geometric mean of its tokens' gates, s = (Π_t f(r_t))^(1/|y|).

    The gate is SAPO's, f(r) = 4/τ · σ(τ (r − 1)). The gradient with respect to a token's log-probability is
    −A · s · τ (1 − p_t) · r_t / (N |y|) with p = σ(τ (r − 1)); on-policy it is the policy gradient, since s = 2/τ and p = 1/2. The
    arguments are those of `sapo_loss`. With advantages of single tokens, each has the value s and its own gradient.
    """
    check_temperatures(tau_pos, tau_neg)
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    tau_B1 = temperatures(advantages_B1, tau_pos, tau_neg)
    ratio_BT = log_ratio_BT.exp()
    log_gate_BT = torch.nn.functional.logsigmoid(tau_B1 * (ratio_BT - 1)) + (4 / tau_B1).log()
    weight_B1 = sequence_means(log_gate_BT.detach(), mask_BT).exp()[:, None]
    objective_BT = weight_B1 * (log_gate_BT - log_gate_BT.detach()).exp() * advantages_B1
    loss = -sequence_means(objective_BT, mask_BT).sum() / (num_sequences or len(mask_BT))
    weight_BT = weight_B1 * tau_B1 * torch.sigmoid(-tau_B1 * (ratio_BT.detach() - 1))
    return loss, gate_metrics(log_ratio_BT, weight_BT, advantages_B1, mask_BT)


def vespo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    kernel_pos: tuple[float, float] = (2.0, 3.0),
    kernel_neg: tuple[float, float] = (3.0, 2.0),
    num_tokens: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """VESPO (arXiv 2602.10693): − sg[φ(W)] · A · log π with φ(W) = W^a · exp(b (1 − W)); mean over tokens.

    W is the ratio of the whole response: the product of its tokens' ratios, not normalised by length.

    Args:
        logprobs_BT: As in `sapo_loss`, like all others.
        old_logprobs_BT: As there.
        advantages_B: As there.
        mask_BT: As there.
        kernel_pos: (a, b) of positive advantages.
        kernel_neg: (a, b) of other advantages.
        num_tokens: Tokens of the whole minibatch. Default: those of this batch.
    """
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    log_ratio_B1 = log_ratio_BT.detach().sum(1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    power_B1, rate_B1 = (
        torch.where(advantages_B1 > 0, torch.full_like(advantages_B1, pos), neg)
        for pos, neg in zip(kernel_pos, kernel_neg, strict=True)
    )
    kernel_B1 = torch.exp(power_B1 * log_ratio_B1 + rate_B1 * (1 - log_ratio_B1.exp()))
    loss = -token_mean(kernel_B1 * advantages_B1 * logprobs_BT.masked_fill(~mask_BT, 0), mask_BT, num_tokens)
    return loss, gate_metrics(log_ratio_BT, kernel_B1 / log_ratio_BT.detach().exp(), advantages_B1, mask_BT)
