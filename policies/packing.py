"""Sequence packing: all tokens of a batch in one row without padding, with attention inside each sequence only.

All layers except attention work on single tokens. Attention runs causally on each sequence's part of the row: there is no mask, and
no work between sequences. On a GPU, in half precision, one flash kernel processes the whole row.

Shapes: B sequences, L tokens of the longest, S tokens in total, H hidden size, A heads, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "packed"
"""Name of this attention in transformers' registry."""
SHARED_KEYS = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Argument of varlen_attn for grouped-query attention; older torch supports it without an argument."""


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes the language model use packed rows. The vision tower is unchanged, since its images are packed already."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    model.set_attn_implementation({"text_config": NAME})


def row_layout(lengths_B: Tensor, device: torch.device) -> dict[str, Any]:
    """Returns the arguments of `packed_attention` for a row, computed once for all layers."""
    lengths = lengths_B.tolist()
    bounds_B1 = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return {"sequence_lengths": lengths, "bounds_B1": bounds_B1}


def real_tokens(lengths_B: Tensor, length: int) -> Tensor:
    """Returns [B, L], True at tokens and False at padding."""
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
    bounds_B1: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Computes causal attention within each sequence of a row. transformers prescribes the signature.

    Args:
        module: The layer; unused.
        query_1ASD: Queries.
        key_1ASD: Keys, with as many heads, or fewer in grouped-query attention.
        value_1ASD: Values, with the heads of the keys.
        attention_mask: None.
        scaling: Factor of the logits.
        sequence_lengths: Tokens of each sequence, in the row's order.
        bounds_B1: [B + 1] int32, the start of each sequence and the end of the last. Without it each sequence is a separate call.

    Returns:
        [1, S, A, D], and no attention weights.
    """
    # Under autocast, norms and rotation return queries and keys in float32.
    query_1ASD, key_1ASD = query_1ASD.to(value_1ASD.dtype), key_1ASD.to(value_1ASD.dtype)
    if bounds_B1 is not None and value_1ASD.is_cuda and value_1ASD.dtype in (torch.bfloat16, torch.float16):
        longest = max(sequence_lengths)
        rows = (tensor[0].transpose(0, 1) for tensor in (query_1ASD, key_1ASD, value_1ASD))
        causal = (-1, 0)
        output_SAD = varlen_attn(
            *rows, bounds_B1, bounds_B1, longest, longest, scale=scaling, window_size=causal, **SHARED_KEYS
        )
        assert isinstance(output_SAD, Tensor)
        return output_SAD[None], None
    pieces = [
        scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        for query, key, value in zip(
            *(tensor.split(list(sequence_lengths), dim=2) for tensor in (query_1ASD, key_1ASD, value_1ASD)), strict=True
        )
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Returns no mask: the sequence lengths replace it."""
