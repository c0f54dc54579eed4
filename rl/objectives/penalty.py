"""The KL penalty, which is added to any objective, and its estimator.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl.sapo import masked_log_ratio, sequence_means


def kl_penalty(logprobs_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, num_sequences: int) -> Tensor:
    """Returns KL(π ‖ reference), estimated on the sampled tokens.

    Args:
        logprobs_BT: log π, with gradient.
        reference_BT: Log-probabilities of the frozen reference.
        mask_BT: True at response tokens.
        num_sequences: Sequences of the whole minibatch.

    Returns:
        The sum over sequences of their token means, divided by `num_sequences`, in nats per token.
    """
    estimates_BT = kl_estimates(-masked_log_ratio(logprobs_BT, reference_BT, mask_BT))
    return sequence_means(estimates_BT, mask_BT).sum() / num_sequences


def kl_estimates(difference: Tensor) -> Tensor:
    """Returns estimates e^d − d − 1 of KL(p ‖ q) on samples of p, in nats.

    Unbiased and never negative (Schulman, "Approximating KL Divergence", k3).

    Args:
        difference: d = log q − log p, of any shape.
    """
    return torch.expm1(difference) - difference
