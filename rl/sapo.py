"""SAPO, Soft Adaptive Policy Optimization (arXiv 2511.20347): a pure function from log-probabilities to a loss.

It differs from GRPO in three ways:
- A soft gate replaces the hard clip: far off-policy tokens fade out gradually and keep some gradient.
- The gate acts on each token, as GRPO's clip does. GSPO instead drops a whole response for a few outliers.
- Temperatures are asymmetric, tau_neg > tau_pos: gradients of negative advantages, which are noisier, fade sooner.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Bound of log r: exp(20) is finite in float32, and the gradient beyond it is 0 anyway."""


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
    """Returns the negated objective of Eq. 5 and 6: each token's ratio r passes a gate f(r) = 4/τ · σ(τ (r − 1)).

        loss = − 1/N Σ_i A_i · 1/|y_i| Σ_t f(r_it),    r_it = exp(logprobs_it − old_logprobs_it)

    Its gradient with respect to a token's log-probability is −A · r · sech²(τ (r − 1) / 2) / (N |y_i|). At r = 1
    it is −A / (N |y_i|) for every τ; it fades softly on both sides.

    Args:
        logprobs_BT: Log-probabilities under the policy that learns; any values, infinities included, outside the mask.
        old_logprobs_BT: Log-probabilities under the policy that sampled; no gradient flows into them.
        advantages_B: One advantage per sequence, shared by its tokens; or [B, T], one per token. The sign selects the temperature.
        mask_BT: True (or 1) at response tokens. A sequence without response tokens contributes nothing.
        tau_pos: Gate temperature of positive advantages.
        tau_neg: Gate temperature of other advantages; a larger one damps them sooner (Eq. 9).
        num_sequences: The N to divide by. Default B. For one of several microbatches pass the count of the whole minibatch: the
            microbatches' losses then add up to the minibatch's.

    Returns:
        The loss, a scalar to minimise, and detached scalar metrics of this batch (see `gate_metrics`).

    Raises:
        ValueError: A temperature is not positive, or shapes differ.
    """
    check_temperatures(tau_pos, tau_neg)
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    tau_B1 = temperatures(advantages_B1, tau_pos, tau_neg)

    ratio_BT = log_ratio_BT.exp()
    gate_BT = torch.sigmoid(tau_B1 * (ratio_BT - 1)) * (4 / tau_B1)
    loss = -sequence_means(gate_BT * advantages_B1, mask_BT).sum() / (num_sequences or len(mask_BT))
    weight_BT = 1 / torch.cosh(tau_B1 * (ratio_BT.detach() - 1) / 2).square()
    return loss, gate_metrics(log_ratio_BT, weight_BT, advantages_B1, mask_BT)


def check_temperatures(tau_pos: float, tau_neg: float) -> None:
    """Raises ValueError unless both temperatures are positive."""
    for name, tau in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
        if not tau > 0:
            raise ValueError(f"{name} must be > 0, got {tau}")


def temperatures(advantages_B1: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    """Returns each sequence's temperature: `tau_pos` where the advantage is positive, else `tau_neg`."""
    return torch.full_like(advantages_B1, tau_neg).masked_fill(advantages_B1 > 0, tau_pos)


def masked_inputs(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the inputs of every objective: the mask as bool, log r with gradient, and the advantages as a column [B, 1].

    Advantages of single tokens stay [B, T], 0 outside the mask. Both forms multiply [B, T].
    """
    check_shapes(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    mask_BT = mask_BT.bool()
    log_ratio_BT = masked_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    advantages = advantages_B.to(log_ratio_BT.dtype)
    return mask_BT, log_ratio_BT, advantages[:, None] if advantages.dim() == 1 else advantages.masked_fill(~mask_BT, 0)


def sequence_means(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns [B], the mean over each sequence's tokens; 0 for a sequence without tokens."""
    return torch.where(mask_BT, values_BT, 0).sum(1) / mask_BT.sum(1).clamp(min=1)


def masked_log_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns log r, 0 outside the mask, clamped to ±MAX_LOG_RATIO; in float32 at least.

    The mask is applied first: an infinity outside it would become NaN in the backward pass, where 0 · inf = NaN. In float16
    exp(12) overflows, and in bfloat16 a gate close to 1 has no digits left.
    """
    wide = torch.promote_types(logprobs_BT.dtype, torch.float32)
    new_BT, old_BT = logprobs_BT.to(wide), old_logprobs_BT.detach().to(wide)
    log_ratio_BT = new_BT.masked_fill(~mask_BT, 0) - old_BT.masked_fill(~mask_BT, 0)
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


@torch.no_grad()
def gate_metrics(log_ratio_BT: Tensor, weight_BT: Tensor, advantages_B1: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Returns how far the policy is from the one that sampled, and how the objective weights its gradient (Section 4.1).

    Args:
        log_ratio_BT: log r.
        weight_BT: The objective's factor of a token's gradient A · r · ∇log π: 1 passes it, 0 blocks it.
        advantages_B1: [B, 1], or [B, T]; the signs split the metrics.
        mask_BT: True at response tokens.

    Returns:
        `ratio_mean`, `ratio_min`, `ratio_max` and the percentiles `ratio_p01`, `ratio_p50`, `ratio_p99` over tokens. `gate_mean`:
        the mean weight. `gate_below_half`: the share of tokens with a weight < 1/2. Both also end in `_positive` and `_negative`,
        over tokens of that advantage. `log_ratio_variance`: Var_i inside a response, averaged over responses. Without tokens,
        ratios and gates are 1, the others 0.
    """
    length_B = mask_BT.sum(1)
    variance_B = sequence_means((log_ratio_BT - sequence_means(log_ratio_BT, mask_BT)[:, None]).square(), mask_BT)
    metrics = ratio_metrics(log_ratio_BT.exp()[mask_BT])
    signs = {"": mask_BT, "_positive": mask_BT & (advantages_B1 > 0), "_negative": mask_BT & (advantages_B1 < 0)}
    for sign, chosen_BT in signs.items():
        weight_N = weight_BT.expand_as(mask_BT)[chosen_BT]
        metrics[f"gate_mean{sign}"] = weight_N.mean() if len(weight_N) else weight_BT.new_tensor(1.0)
        metrics[f"gate_below_half{sign}"] = (weight_N < 0.5).sum() / max(1, len(weight_N))
    return metrics | {"log_ratio_variance": variance_B.sum() / (length_B > 0).sum().clamp(min=1)}


def ratio_metrics(ratio_N: Tensor) -> dict[str, Tensor]:
    """Returns mean, extremes and percentiles (nearest rank) of the tokens' ratios; ones without tokens."""
    ordered_N = ratio_N.sort().values if len(ratio_N) else ratio_N.new_ones(1)
    ranks = {"min": 0.0, "p01": 0.01, "p50": 0.5, "p99": 0.99, "max": 1.0}
    picked = {f"ratio_{name}": ordered_N[round(share * (len(ordered_N) - 1))] for name, share in ranks.items()}
    return {"ratio_mean": ordered_N.mean(), **picked}


def gate_weight(ratio: float, tau: float) -> float:
    """Returns w(r) = sech²(τ (r − 1) / 2), the weight of a token's gradient relative to the plain policy gradient's r."""
    return 1 / math.cosh(tau * (ratio - 1) / 2) ** 2


def check_shapes(logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor) -> None:
    """Raises ValueError unless the three matrices agree and there is one advantage per row, or per token."""
    shapes = [tuple(x.shape) for x in (logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)]
    fits = shapes[2] in (shapes[0][:1], shapes[0])
    if logprobs_BT.dim() != 2 or not shapes[0] == shapes[1] == shapes[3] or not fits:
        raise ValueError(
            "logprobs, old_logprobs, mask and advantages of tokens must be [B, T] and advantages [B], got "
            f"{shapes[0]}, {shapes[1]}, {shapes[3]} and {shapes[2]}"
        )
