"""Sequences without padding: the tokens of a batch one behind the other in one row, each attending to its own sequence.

All layers but attention see tokens alone. Attention runs causally on each sequence's piece of the row: no mask exists, and no work
is done between sequences. On a GPU, in half precision, one flash kernel takes the whole row.

Shapes: B sequences, L tokens of the longest, S of all together, H hidden size, A heads, D their size.
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
"""Of this attention in transformers' registry."""
SHARED_KEYS = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""What varlen_attn is told so that several queries' heads share a key's; older torch takes them so without."""


def use_packed_attention(model: PreTrainedModel) -> None:
    """Has the language model expect packed rows; the vision tower, whose images lie packed anyway, stays as it is."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    model.set_attn_implementation({"text_config": NAME})


def row_layout(lengths_B: Tensor, device: torch.device) -> dict[str, Any]:
    """Where each sequence of a row begins and ends, as `packed_attention` takes it: once for all layers."""
    lengths = lengths_B.tolist()
    bounds_B1 = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return {"sequence_lengths": lengths, "bounds_B1": bounds_B1}


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
    bounds_B1: Tensor | None = None,
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
        bounds_B1: [B + 1] int32, where each begins, and where the last ends; without it each sequence is a call of its own.

    Returns:
        [1, S, A, D], and no attention weights.
    """
    # Under autocast, norms and rotation leave queries and keys in float32.
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
    """Which tokens attend to which follows from the lengths."""
