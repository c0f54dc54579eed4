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


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """The distance x of a ratio from on-policy, given z, its logarithm."""

    value: Callable[[Tensor], Tensor]
    """x, 0 at z = 0, with the slope 1 there."""
    relative_slope: Callable[[Tensor], Tensor]
    """dx/dz over the ratio e^z: what the gate's weight is multiplied by, measured against the policy gradient."""


def _minus_one(z: Tensor) -> Tensor:
    return z.exp() - 1


def _itself(z: Tensor) -> Tensor:
    return z


def _inverse(z: Tensor) -> Tensor:
    return (-z).exp()


RATIO = Distance(value=_minus_one, relative_slope=torch.ones_like)
"""x = r − 1, SAPO's own."""
LOG_RATIO = Distance(value=_itself, relative_slope=_inverse)
"""x = log r, the same for r and 1/r."""


def of_token(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns each token's own log r."""
    return log_ratio_BT


def of_sequence(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns GSPO's log s, the mean of log r over the response, with each token's own gradient (arXiv 2507.18071, Eq. 13)."""
    mean_B1 = sequence_means(log_ratio_BT.detach(), mask_BT)[:, None]
    return mean_B1 + log_ratio_BT - log_ratio_BT.detach()


def on_both_sides(x: Tensor, advantages_B1: Tensor) -> Tensor:
    """Returns True: SAPO gates every token."""
    return torch.ones_like(x, dtype=torch.bool)


def on_the_favoured_side(x: Tensor, advantages_B1: Tensor) -> Tensor:
    """Returns True where the policy has moved as the advantage says: r > 1 where A > 0, r < 1 where A < 0.

    SAPO also damps a good token that has fallen and a bad one that has risen, so little brings them back. PPO's clip leaves these
    alone.
    """
    return x * advantages_B1 > 0


def soft_gate_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    shape: Shape = SIGMOID,
    distance: Distance = RATIO,
    level: Callable[[Tensor, Tensor], Tensor] = of_token,
    gated: Callable[[Tensor, Tensor], Tensor] = on_both_sides,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SAPO with other parts: f = 2/τ · F(τ x / 2) where a token is gated, else f = x + 2/τ · F(0).

    With its defaults it is SAPO. Other shapes are from arXiv 2602.19345. Gates of sequences, with x from GSPO's ratio, cut whole
    responses softly. Both branches have the slope 1 on-policy. Shapes and the other arguments are those of `sapo_loss`.

    Args:
        logprobs_BT: As in `sapo_loss`, like the three after it.
        old_logprobs_BT: As there.
        advantages_B: As there.
        mask_BT: As there.
        shape: F.
        distance: x.
        level: The ratio that x is of: a token's or a sequence's.
        gated: The tokens that have a gate; the others have the policy gradient.
        tau_pos: As in `sapo_loss`.
        tau_neg: As there.
        num_sequences: As there.
    """
    check_temperatures(tau_pos, tau_neg)
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    tau_B1 = temperatures(advantages_B1, tau_pos, tau_neg)
    z_BT = level(log_ratio_BT, mask_BT)
    x_BT = distance.value(z_BT)
    gated_BT = gated(x_BT, advantages_B1)
    u_BT = tau_B1 * torch.where(gated_BT, x_BT, 0) / 2
    # One of the two terms is constant.
    objective_BT = 2 / tau_B1 * shape.rise(u_BT) + torch.where(gated_BT, 0, x_BT)
    loss = -sequence_means(objective_BT * advantages_B1, mask_BT).sum() / (num_sequences or len(mask_BT))
    slope_BT = torch.where(gated_BT, shape.slope(u_BT.detach()), 1.0)
    weight_BT = slope_BT * distance.relative_slope(z_BT.detach())
    return loss, gate_metrics(log_ratio_BT, weight_BT, advantages_B1, mask_BT)


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
