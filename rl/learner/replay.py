"""A microbatch's tokens in the order in which they pass through the layers, as routing replay and the balance loss need them.

Shapes: B sequences of L tokens, T = L − 1 predicted positions, N tokens of the row, M of all sequences, K layers, k experts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from policies.packing import real_tokens
from policies.routing import UNKNOWN
from rl.learner.microbatches import Microbatch
from rollout.types import unknown_expert


def engines_experts(batch: Microbatch) -> Tensor:
    """Returns [K, N, k], the experts that the engine chose, `UNKNOWN` where they are not known.

    Raises:
        ValueError: The engine returned none.
    """
    if batch.experts_BLKk is None:
        raise ValueError(f"prompt {batch.prompt_ids[0]}: the engine returned no experts: use learner.routing_replay R2")
    experts_NKk = batch.experts_BLKk.flatten(0, 1)[batch.row.tokens_S]
    unknown = experts_NKk == unknown_expert(experts_NKk.element_size())
    return experts_NKk.to(torch.int16).masked_fill(unknown, UNKNOWN).transpose(0, 1)


def num_copies(batch: Microbatch, mode: Literal["off", "R2", "R3"]) -> Tensor:
    """Returns [N], the sequences that have each token of the row; in R2 only those with a prediction that depends on it."""
    counted_BL = attended_mask(batch.mask_BT)
    if mode == "R3":
        counted_BL = real_tokens(batch.lengths_B, batch.tokens_BL.shape[1])
    return torch.bincount(batch.row.places_BL[counted_BL], minlength=len(batch.row.tokens_S))


def token_places(batch: Microbatch) -> tuple[Tensor, Tensor]:
    """Returns [M] each, over the tokens of all sequences: the token's place in the row, and the number of its sequence."""
    real_BL = real_tokens(batch.lengths_B, batch.tokens_BL.shape[1])
    return batch.row.places_BL[real_BL], real_BL.nonzero()[:, 0]


def attended_mask(mask_BT: Tensor) -> Tensor:
    """Returns [B, L], True at tokens that some prediction of the loss depends on: all up to the last one before the end."""
    return pad(mask_BT.flip(1).cumsum(1).flip(1) > 0, (0, 1))
