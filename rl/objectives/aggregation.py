"""Denominators of a loss, exchanged for each other in any objective that is linear in the advantage.

An objective sums a value of each token, A_i · f(r_it), and divides it by one of these, with N sequences and M tokens in the whole
minibatch:

    sequence_mean     N · |y_i|            each sequence counts the same (GRPO, SAPO)
    token_mean        M                    each token counts the same (DAPO)
    constant_length   N · max_tokens       the same, whatever the others' lengths are (Dr. GRPO, arXiv 2503.20783)

They differ by a positive factor of each sequence. It goes into the advantage, whose sign alone decides about gates and clips.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from rl.config import Aggregation
from rl.objectives.contract import Objective, accepted

Metrics: TypeAlias = dict[str, Tensor]


def aggregated_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    objective: Objective,
    own: Aggregation,
    wanted: Aggregation,
    max_tokens: int,
    num_sequences: int | None = None,
    num_tokens: int | None = None,
) -> tuple[Tensor, Metrics]:
    """Applies an objective with another denominator than its own.

    Args:
        logprobs_BT: As in `sapo_loss`, like the three after it.
        old_logprobs_BT: As there.
        advantages_B: As there.
        mask_BT: As there.
        objective: The objective.
        own: Its own denominator.
        wanted: The denominator to use.
        max_tokens: The length of `constant_length`, in tokens.
        num_sequences: N. Default: the sequences of this batch.
        num_tokens: M. Default: the tokens of this batch.
    """
    counts = {
        "num_sequences": num_sequences or len(mask_BT),
        "num_tokens": num_tokens or max(1, int(mask_BT.sum())),
        "max_tokens": max_tokens,
    }
    length_B = mask_BT.sum(1).clamp(min=1)
    factor_B = _denominator(own, length_B, **counts) / _denominator(wanted, length_B, **counts)
    factor = (factor_B if advantages_B.dim() == 1 else factor_B[:, None]).to(advantages_B.dtype)
    return objective(logprobs_BT, old_logprobs_BT, advantages_B * factor, mask_BT, **accepted(objective, counts))


def _denominator(
    kind: Aggregation, length_B: Tensor, *, num_sequences: int, num_tokens: int, max_tokens: int
) -> Tensor:
    """Returns [B], the number that a token's value is divided by."""
    if kind == "sequence_mean":
        return num_sequences * length_B.double()
    constant = num_tokens if kind == "token_mean" else num_sequences * max_tokens
    return torch.full_like(length_B, constant, dtype=torch.double)
