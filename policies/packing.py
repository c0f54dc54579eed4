"""Sequences without padding: the tokens of a batch one behind the other in one row, each attending to its own sequence.

All layers but attention see tokens alone. Attention runs causally on each sequence's piece of the row, which on a GPU takes
torch's flash kernel: no mask exists, and no work is done between sequences.

Shapes: B sequences, L tokens of the longest, S of all together, H hidden size, A heads, D their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "packed"
"""Of this attention in transformers' registry."""


def use_packed_attention(model: PreTrainedModel) -> None:
    """Has the language model expect packed rows; the vision tower, whose images lie packed anyway, stays as it is."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    model.set_attn_implementation({"text_config": NAME})


def real_tokens(lengths_B: Tensor, length: int) -> Tensor:
    """[B, L] True where there is a token and no padding."""
    return torch.arange(length, device=lengths_B.device) < lengths_B[:, None]


def packed_attention(
    module: nn.Module,
    query_1ASD: Tensor,
    key_1ASD: Tensor,
    value_1ASD: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    sequence_lengths: Sequence[int],
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a row, as transformers calls it.

    Args:
        module: The layer; unused.
        query_1ASD: Queries.
        key_1ASD: Keys, of as many heads or, in grouped-query attention, fewer.
        value_1ASD: Values, likewise.
        attention_mask: None.
        scaling: Of the logits.
        sequence_lengths: Tokens of each sequence, in the row's order.

    Returns:
        [1, S, A, D], and no attention weights.
    """
    pieces = [
        scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        for query, key, value in zip(
            *(tensor.split(list(sequence_lengths), dim=2) for tensor in (query_1ASD, key_1ASD, value_1ASD)), strict=True
        )
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Which tokens attend to which follows from the lengths."""
