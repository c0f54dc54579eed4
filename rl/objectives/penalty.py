"""The KL penalty, which is added to any objective.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

from torch import Tensor

from rl.sapo import masked_log_ratio, sequence_means


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
