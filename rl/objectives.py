"""Other objectives, pure functions with `sapo_loss`'s signature, for comparison and as patterns for custom ones.

An objective takes `(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)`. By keyword it takes the counts of the *whole* minibatch
that its mean divides by: `num_sequences` or `num_tokens`. So the losses of microbatches add up to the minibatch's for any split. It
returns a scalar to minimise and a dict of scalar metrics. Advantages are [B], or [B, T] if a teacher scores every token.

Metrics of microbatches are merged by their names. `_min` and `_max` take the extreme. Others are means: over tokens; for
`_positive` and `_negative` over tokens with such an advantage; for `_variance` over sequences.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from rewards.loading import load_function
from rl.config import LearningOptions
from rl.sapo import MAX_LOG_RATIO, gate_metrics, masked_inputs, masked_log_ratio, sapo_loss, sequence_means

Objective: TypeAlias = Callable[..., tuple[Tensor, dict[str, Tensor]]]
COUNTS = ("num_sequences", "num_tokens")


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
    loss = -_token_mean(objective_BT, mask_BT, num_tokens)
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
    loss = -_token_mean(weight_BT * advantages_B1 * logprobs_BT.masked_fill(~mask_BT, 0), mask_BT, num_tokens)
    return loss, gate_metrics(log_ratio_BT, weight_BT / ratio_BT, advantages_B1, mask_BT)


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
    loss = -_token_mean(kernel_B1 * advantages_B1 * logprobs_BT.masked_fill(~mask_BT, 0), mask_BT, num_tokens)
    return loss, gate_metrics(log_ratio_BT, kernel_B1 / log_ratio_BT.detach().exp(), advantages_B1, mask_BT)


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "sapo": sapo_loss,
        "grpo": grpo_loss,
        "gspo": gspo_loss,
        "dapo": dapo_loss,
        "dr_grpo": dr_grpo_loss,
        "cispo": cispo_loss,
        "vespo": vespo_loss,
        "policy_gradient": policy_gradient_loss,
    }
)
"""Name → objective."""


def choose_objective(options: LearningOptions) -> Objective:
    """Returns the named objective, or the function of a file, bound to the options that it takes.

    Raises:
        ValueError: There is no such function, or the objective lacks an option that is set.
    """
    named = ":" not in options.objective  # `check_config` has checked the name
    objective = OBJECTIVES[options.objective] if named else load_function(options.objective, "objective")
    clips = {"clip_low": options.clip_low, "clip_high": options.clip_high}
    bounds = {name: value for name, value in clips.items() if value is not None}
    if extra := bounds.keys() - accepted(objective, bounds).keys():
        values = ", ".join(f"{name} = {bounds[name]:g}" for name in sorted(extra))
        raise ValueError(f"objective {options.objective!r} does not clip by {values}: leave it out")
    arguments = {
        "tau_pos": options.tau_pos,
        "tau_neg": options.tau_neg,
        "max_tokens": options.rollout.max_tokens,
        **bounds,
    }
    return partial(objective, **accepted(objective, arguments))


def check_objective(objective: Objective, *, by_token: bool = False) -> None:
    """Calls an objective on a small batch, to find mistakes before anything costly starts.

    Args:
        objective: The objective.
        by_token: Passes advantages [B, T], as with a teacher.

    Raises:
        ValueError: It raises, returns no loss with a gradient, or does not take the counts of the whole minibatch. Without the
            counts, the update would depend on the split into microbatches.
    """
    name = getattr(getattr(objective, "func", objective), "__name__", repr(objective))
    counts = accepted(objective, dict.fromkeys(COUNTS, 2))
    if not counts:
        raise ValueError(
            f"objective {name!r} takes neither {' nor '.join(COUNTS)}: it could not be split into microbatches"
        )
    logprobs_BT = torch.full((2, 3), -1.0, requires_grad=True)
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    advantages = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]) if by_token else torch.tensor([1.0, -1.0])
    try:
        loss, metrics = objective(logprobs_BT, torch.full((2, 3), -1.1), advantages, mask_BT, **counts)
        (gradient_BT,) = torch.autograd.grad(loss, logprobs_BT)
        for value in metrics.values():
            float(value)
    except Exception as error:
        kind = ", with an advantage for each token, as with a teacher" if by_token else ""
        raise ValueError(
            f"objective {name!r} failed on a trial batch{kind}: {type(error).__name__}: {error}"
        ) from error
    if not (gradient_BT.isfinite().all() and not gradient_BT[~mask_BT].any() and loss.isfinite()):
        raise ValueError(
            f"objective {name!r} gave loss {loss.item():g} and gradient {gradient_BT.tolist()} on a trial batch: both must be "
            "finite, and the gradient 0 outside the mask"
        )


def kl_penalty(logprobs_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, num_sequences: int) -> Tensor:
    """Returns KL(π ‖ reference), estimated on the sampled tokens by e^d − d − 1 with d = log reference − log π.

    The estimator is unbiased and never negative (Schulman, "Approximating KL Divergence", k3).

    Args:
        logprobs_BT: log π, with gradient.
        reference_BT: Log-probabilities of the frozen reference.
        mask_BT: True at response tokens.
        num_sequences: Sequences of the whole minibatch.

    Returns:
        The sum over sequences of their token means, divided by `num_sequences`, in nats per token.
    """
    difference_BT = -masked_log_ratio(logprobs_BT, reference_BT, mask_BT)
    return sequence_means(difference_BT.exp() - difference_BT - 1, mask_BT).sum() / num_sequences


def accepted(objective: Objective, available: Mapping[str, object]) -> dict[str, object]:
    """Returns the available keyword arguments that an objective takes; all of them if it has `**kwargs`."""
    parameters = inspect.signature(objective).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(available)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in available.items() if name in names}


def _clipped(ratio: Tensor, advantages_B1: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Returns PPO's pessimistic clipping min(r A, clip(r) A), and [B, T] or [B, 1]: 1 where the gradient passes, else 0."""
    objective = torch.minimum(ratio * advantages_B1, ratio.clamp(1 - low, 1 + high) * advantages_B1)
    inside = torch.where(advantages_B1 > 0, ratio <= 1 + high, ratio >= 1 - low)
    return objective, inside.to(ratio.dtype)


def _token_mean(values_BT: Tensor, mask_BT: Tensor, num_tokens: int | None) -> Tensor:
    count = mask_BT.sum().clamp(min=1) if num_tokens is None else max(1, num_tokens)
    return torch.where(mask_BT, values_BT, 0).sum() / count
