"""Losses of a few tokens, and SAPO's gate by another formula than the code's."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def value_and_gradient(
    objective: Callable, ratios: list[list[float]], advantages: list[float], old: float = -2.0, **options: object
) -> tuple[float, list[list[float]]]:
    """Loss and ∂loss/∂logprobs where r = `ratios`; 0 stands for a token outside the mask, which is filled with −inf."""
    ratio_BT = double(ratios)
    mask_BT = ratio_BT > 0
    logprobs_BT = (old + ratio_BT.log()).requires_grad_()
    loss, _ = objective(logprobs_BT, torch.full_like(ratio_BT, old), double(advantages), mask_BT, **options)
    loss.backward()
    return loss.item(), logprobs_BT.grad.tolist()


def gate(ratio: float, tau: float) -> float:
    """SAPO's f(r)."""
    return 4 / tau / (1 + math.exp(-tau * (ratio - 1)))


def slope(ratio: float, tau: float) -> float:
    """r · w(r), by p (1 − p) rather than by the hyperbolic secant of the code."""
    p = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return 4 * p * (1 - p) * ratio
