"""The function under test: small batches, its gradient on them, and a comparison with numbers worked by hand.

Weights ω are gradients of one token over the one that the function itself gives on-policy. A factor that is wrong everywhere
cancels in them, so that each check finds its own fault.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rl.objectives.contract import accepted

Subject: TypeAlias = Callable[..., Any]
"""A function with `sapo_loss`'s arguments. It returns a loss, or a tuple that begins with it."""

OLD_LOGPROB = -2.0
TAU = (1.0, 1.05)
"""(τ_pos, τ_neg) of the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Numbers of the function beside those of the formula."""

    quantity: str
    measured: Sequence[float]
    expected: Sequence[float]
    """As many as measured."""
    tolerance: float = 1e-5
    """Largest difference, as a share of the expected number or of 1, the larger of both."""
    note: str = ""
    """Said beside the numbers."""

    @property
    def holds(self) -> bool:
        """True if all numbers agree; NaN agrees with nothing."""
        pairs = zip(self.measured, self.expected, strict=True)
        return all(abs(measured - right) <= self.tolerance * max(1.0, abs(right)) for measured, right in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Arguments of one call."""

    logprobs_BT: Tensor
    """A leaf that takes the gradient."""
    old_logprobs_BT: Tensor
    advantages_B: Tensor
    mask_BT: Tensor
    """bool"""


def make_batch(
    log_ratios: Sequence[Sequence[float]],
    advantages: Sequence[float],
    lengths: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Returns a batch of those log ratios [B, T], advantages [B] and response lengths [B]; default: all tokens."""
    log_ratio_BT = torch.tensor(log_ratios, dtype=dtype)
    old_BT = torch.full_like(log_ratio_BT, OLD_LOGPROB)
    length_B = torch.tensor([len(row) for row in log_ratios] if lengths is None else lengths)
    return Batch(
        logprobs_BT=(old_BT + log_ratio_BT).requires_grad_(),
        old_logprobs_BT=old_BT,
        advantages_B=torch.tensor(advantages, dtype=dtype),
        mask_BT=torch.arange(log_ratio_BT.shape[1]) < length_B[:, None],
    )


def loss_of(
    subject: Subject, batch: Batch, *, tau: tuple[float, float] = TAU, num_sequences: int | None = None
) -> Tensor:
    """Calls the function with those of the options that it takes; `num_sequences` is by default those of the batch."""
    options = {"tau_pos": tau[0], "tau_neg": tau[1], "num_sequences": num_sequences or len(batch.mask_BT)}
    arguments = (batch.logprobs_BT, batch.old_logprobs_BT, batch.advantages_B, batch.mask_BT)
    result = subject(*arguments, **accepted(subject, options))
    loss = result[0] if isinstance(result, tuple) else result
    if not isinstance(loss, Tensor) or loss.dim():
        shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TypeError(f"it returned {shape} as the loss, where a scalar tensor belongs")
    return loss


def gradient(
    subject: Subject, batch: Batch, *, tau: tuple[float, float] = TAU, num_sequences: int | None = None
) -> Tensor:
    """Returns [B, T], ∂loss/∂logprobs in float64; zeros for a loss that does not depend on them."""
    loss = loss_of(subject, batch, tau=tau, num_sequences=num_sequences)
    if not loss.requires_grad:
        return torch.zeros_like(batch.logprobs_BT, dtype=torch.float64)
    (found,) = torch.autograd.grad(loss, batch.logprobs_BT, allow_unused=True, materialize_grads=True)
    return found.double()


def token_gradient(subject: Subject, ratio: float, advantage: float, tau: tuple[float, float] = TAU) -> float:
    """Returns the gradient of a batch of one token."""
    return gradient(subject, make_batch([[math.log(ratio)]], [advantage]), tau=tau).item()


def token_weight(subject: Subject, ratio: float, advantage: float, tau: tuple[float, float] = TAU) -> float:
    """Returns ω(r): the gradient of one token at ratio r over its gradient at ratio 1."""
    return over(token_gradient(subject, ratio, advantage, tau), token_gradient(subject, 1.0, advantage, tau))


def over(value: float, reference: float) -> float:
    """Returns a quotient; NaN by 0, where the function gives no gradient on-policy."""
    return value / reference if reference else math.nan


def sapo_weight(ratio: float, tau: float) -> float:
    """Returns SAPO's ω(r) = r · sech²(τ (r − 1) / 2)."""
    return ratio / math.cosh(tau * (ratio - 1) / 2) ** 2
