"""Sequence packing: all tokens of a batch in one row without padding, with attention inside each sequence only.

All layers except attention work on single tokens. So a common beginning of sequences, as a group's prompt, passes through them
once. The first sequence has it in the row, and the others continue from its keys and values. There is no mask, and no work between
other sequences. On a GPU, in half precision, one flash kernel processes the whole row.

Shapes: B sequences, L tokens of the longest, S tokens of the row, A heads, D head size. Of a family: G sequences that continue, N
tokens of the longest continuation.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "packed"
"""Name of this attention in transformers' registry."""
SHARED_KEYS = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Argument of varlen_attn for grouped-query attention; older torch supports it without an argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Sequences with a common beginning, side by side in a row."""

    shared: int
    """Tokens of the beginning; 0 for a single sequence."""
    lengths: Sequence[int]
    """Tokens of each sequence in the row: of the first with the beginning, of the others without."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """The tokens of a batch [B, L] in the order in which they pass through the layers."""

    tokens_S: Tensor
    """int64, the place in the flattened batch of each token of the row."""
    places_BL: Tensor
    """int64, the place in the row of each token of the batch; 0 at padding that is left out."""
    families: Sequence[Family] = ()
    """All sequences, in the batch's order; empty if the row is the whole batch, padding included."""
    query_bounds: Tensor | None = None
    """[B + 1] int32, the start in the row of each sequence, and the end of the last."""
    key_bounds: Tensor | None = None
    """[B + 1] int32, the start of each sequence's keys, a common beginning's included, one sequence after the other."""
    key_places: Tensor | None = None
    """int64, the place in the row of each of these keys; None if they are the row."""

    def to(self, device: torch.device) -> Row:
        """Returns the row with all tensors on `device`."""
        tensors = {each.name: getattr(self, each.name) for each in fields(self)}
        moved = {name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def padded_row(num_sequences: int, length: int) -> Row:
    """Returns the row of a batch that keeps its padding."""
    places_BL = torch.arange(num_sequences * length).view(num_sequences, length)
    return Row(tokens_S=places_BL.flatten(), places_BL=places_BL)


def packed_row(lengths: Sequence[int], shared: Sequence[int] | None = None) -> Row:
    """Returns the row of a batch without padding and repeated beginnings.

    Args:
        lengths: [B] tokens of each sequence.
        shared: [B] tokens in common with the sequence that begins the family, which has 0. The others of a family have the same
            number, less than their lengths. Default: nothing is shared.
    """
    shared = shared or [0] * len(lengths)
    longest = max(lengths)
    places_BL = torch.zeros(len(lengths), longest, dtype=torch.long)
    bounds = [0, *accumulate(length - common for length, common in zip(lengths, shared, strict=True))]
    tokens, keys, families, first = [], [], list[Family](), 0
    for b, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        if common:
            places_BL[b, :common] = places_BL[first, :common]
            families[-1] = Family(shared=common, lengths=[*families[-1].lengths, length - common])
        else:
            families.append(Family(shared=0, lengths=[length]))
            first = b
        places_BL[b, common:length] = torch.arange(bounds[b], bounds[b + 1])
        tokens.append(torch.arange(b * longest + common, b * longest + length))
        keys.append(places_BL[b, :length])
    return Row(
        tokens_S=torch.cat(tokens),
        places_BL=places_BL,
        families=families,
        query_bounds=torch.tensor(bounds, dtype=torch.int32),
        key_bounds=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        key_places=torch.cat(keys) if any(shared) else None,
    )


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes the language model use packed rows. The vision tower is unchanged, since its images are packed already."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    model.set_attn_implementation({"text_config": NAME})


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
    row: Row,
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
        row: The row, from `packed_row`.

    Returns:
        [1, S, A, D], and no attention weights.
    """
    # Under autocast, norms and rotation return queries and keys in float32.
    query_1ASD, key_1ASD = query_1ASD.to(value_1ASD.dtype), key_1ASD.to(value_1ASD.dtype)
    if value_1ASD.is_cuda and value_1ASD.dtype in (torch.bfloat16, torch.float16):
        return _one_kernel(query_1ASD, key_1ASD, value_1ASD, scaling, row), None
    sizes = [sum(family.lengths) for family in row.families]
    parts = (tensor.split(sizes, dim=2) for tensor in (query_1ASD, key_1ASD, value_1ASD))
    pieces = [
        piece
        for family, query, key, value in zip(row.families, *parts, strict=True)
        for piece in _family_attention(family, query, key, value, scaling)
    ]
    return torch.cat(pieces)[None], None


def _family_attention(family: Family, query: Tensor, key: Tensor, value: Tensor, scale: float) -> list[Tensor]:
    """Returns the outputs [tokens, A, D] of a family's first sequence, and of its others in one call."""
    first, *others = family.lengths
    whole = scaled_dot_product_attention(
        query[:, :, :first], key[:, :, :first], value[:, :, :first], is_causal=True, scale=scale, enable_gqa=True
    )
    pieces = [whole[0].transpose(0, 1)]
    if others:
        query_GAND, key_GAND, value_GAND = (_padded(each[:, :, first:], others) for each in (query, key, value))
        keys, values = (
            torch.cat([each[:, :, : family.shared].expand(len(others), -1, -1, -1), own], dim=2)
            for each, own in ((key, key_GAND), (value, value_GAND))
        )
        longest = max(others)
        # A continuation's token sees the whole beginning, and its own tokens up to itself: padding comes after all of them.
        mask = torch.ones(longest, family.shared + longest, dtype=torch.bool, device=query.device).tril(family.shared)
        output = scaled_dot_product_attention(query_GAND, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
        real_GN = real_tokens(torch.tensor(others, device=query.device), longest)
        pieces.append(output.transpose(1, 2)[real_GN])
    return pieces


def _padded(rows_1ASD: Tensor, lengths: Sequence[int]) -> Tensor:
    """[G, A, N, D] consecutive pieces of a row, padded."""
    pieces = rows_1ASD[0].transpose(0, 1).split(list(lengths))
    return pad_sequence(list(pieces), batch_first=True).transpose(1, 2)


def _one_kernel(query_1ASD: Tensor, key_1ASD: Tensor, value_1ASD: Tensor, scale: float, row: Row) -> Tensor:
    """[1, S, A, D] by a flash kernel, in which the last queries of a sequence are at its last keys."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query_1ASD, key_1ASD, value_1ASD))
    if row.key_places is not None:
        key, value = key[row.key_places], value[row.key_places]
    longest_query = max(length for family in row.families for length in family.lengths)
    causal = (-1, 0)
    output_SAD = varlen_attn(
        query,
        key,
        value,
        row.query_bounds,
        row.key_bounds,
        longest_query,
        row.places_BL.shape[1],
        scale=scale,
        window_size=causal,
        **SHARED_KEYS,
    )
    assert isinstance(output_SAD, Tensor)
    return output_SAD[None]


def _no_mask(*_: Any, **__: Any) -> None:
    """Returns no mask: the row replaces it."""
