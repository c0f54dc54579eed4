"""Objectives with a hard clip, or with none, for comparison with SAPO and as patterns for custom ones.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl.sapo import gate_metrics, masked_inputs, sequence_means


def policy_gradient_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy gradient with importance sampling: f(r) = r, no gate; mean over sequences of the mean over tokens."""
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    loss = -sequence_means(log_ratio_BT.exp() * advantages_B1, mask_BT).sum() / (num_sequences or len(mask_BT))
    return loss, gate_metrics(log_ratio_BT, torch.ones_like(log_ratio_BT), advantages_B1, mask_BT)


def grpo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.27,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """GRPO (arXiv 2402.03300, Eq. 3): min(r A, clip(r, 1 − low, 1 + high) A); mean over sequences of the mean over tokens.

    The default bounds are those of the comparison in SAPO's paper.
    """
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    objective_BT, inside_BT = _clipped(log_ratio_BT.exp(), advantages_B1, clip_low, clip_high)
    loss = -sequence_means(objective_BT, mask_BT).sum() / (num_sequences or len(mask_BT))
    return loss, gate_metrics(log_ratio_BT, inside_BT, advantages_B1, mask_BT)


def dapo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    num_tokens: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DAPO (arXiv 2503.14476, Eq. 8): GRPO's clipping with a higher upper bound; mean over all tokens."""
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    objective_BT, inside_BT = _clipped(log_ratio_BT.exp(), advantages_B1, clip_low, clip_high)
    loss = -token_mean(objective_BT, mask_BT, num_tokens)
    return loss, gate_metrics(log_ratio_BT, inside_BT, advantages_B1, mask_BT)


def dr_grpo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    max_tokens: int | None = None,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Dr. GRPO (arXiv 2503.20783): GRPO's clipping; each sequence's sum divided by a fixed length, not by its own length.

    Its advantages are not divided by a standard deviation either: use `advantage = group_mean`.

    Args:
        logprobs_BT: As in `sapo_loss`, like all others.
        old_logprobs_BT: As there.
        advantages_B: As there.
        mask_BT: As there.
        clip_low: 1 − r beyond which a token with a negative advantage is cut off.
        clip_high: r − 1 beyond which a token with a positive advantage is cut off.
        max_tokens: The fixed length, in tokens. Default T, the padded length; a run passes `rollout.max_tokens`.
        num_sequences: As in `sapo_loss`.
    """
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    objective_BT, inside_BT = _clipped(log_ratio_BT.exp(), advantages_B1, clip_low, clip_high)
    length = max_tokens or mask_BT.shape[1]
    loss = -torch.where(mask_BT, objective_BT, 0).sum() / ((num_sequences or len(mask_BT)) * length)
    return loss, gate_metrics(log_ratio_BT, inside_BT, advantages_B1, mask_BT)


def gspo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    num_sequences: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """GSPO (arXiv 2507.18071, Eq. 5): clips the whole response by its ratio s = exp(mean over tokens of log r).

    With advantages of single tokens it is GSPO-token (Eq. 13): the ratio has the value s and each token's own gradient.
    """
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    ratio_B1 = sequence_means(log_ratio_BT, mask_BT).exp()[:, None]
    by_token = advantages_B.dim() == 2
    if by_token:
        ratio_B1 = ratio_B1.detach() * (log_ratio_BT - log_ratio_BT.detach()).exp()
    objective_B1, inside_B1 = _clipped(ratio_B1, advantages_B1, clip_low, clip_high)
    any_token_B1 = mask_BT.any(1, keepdim=True)
    means_B = sequence_means(objective_B1, mask_BT) if by_token else torch.where(any_token_B1, objective_B1, 0)
    loss = -means_B.sum() / (num_sequences or len(mask_BT))
    return loss, gate_metrics(log_ratio_BT, inside_B1, advantages_B1, mask_BT)


def cispo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_high: float = 4.0,
    num_tokens: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """CISPO (arXiv 2506.13585, Eq. 4): − sg[min(r, 1 + high)] · A · log π, mean over tokens; clipped tokens keep a gradient."""
    mask_BT, log_ratio_BT, advantages_B1 = masked_inputs(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)
    ratio_BT = log_ratio_BT.detach().exp()
    weight_BT = ratio_BT.clamp(max=1 + clip_high)
    loss = -token_mean(weight_BT * advantages_B1 * logprobs_BT.masked_fill(~mask_BT, 0), mask_BT, num_tokens)
    return loss, gate_metrics(log_ratio_BT, weight_BT / ratio_BT, advantages_B1, mask_BT)


def _clipped(ratio: Tensor, advantages_B1: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Returns PPO's pessimistic clipping min(r A, clip(r) A), and [B, T] or [B, 1]: 1 where the gradient passes, else 0."""
    objective = torch.minimum(ratio * advantages_B1, ratio.clamp(1 - low, 1 + high) * advantages_B1)
    inside = torch.where(advantages_B1 > 0, ratio <= 1 + high, ratio >= 1 - low)
    return objective, inside.to(ratio.dtype)


def token_mean(values_BT: Tensor, mask_BT: Tensor, num_tokens: int | None) -> Tensor:
    """Returns the mean over all tokens of the minibatch, of which these may be a part."""
    count = mask_BT.sum().clamp(min=1) if num_tokens is None else max(1, num_tokens)
    return torch.where(mask_BT, values_BT, 0).sum() / count
