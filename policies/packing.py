"""Sequence packing: all tokens of a batch in one row without padding, with attention inside each sequence only.

All layers except attention work on single tokens. So a common beginning of sequences, as a group's prompt, passes through them
once. The first sequence has it in the row, and the others continue from its keys and values. On a GPU, in half precision, one flash
kernel processes the whole row. Elsewhere sequences of similar lengths go through one call of torch's attention, padded.

Shapes: B sequences, L tokens of the longest, S tokens of the row, A heads, D head size, C = A·D. Of a call: G sequences, N queries
and K keys of the longest.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "packed"
"""Name of this attention in transformers' registry."""
SHARED_KEYS = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Argument of varlen_attn for grouped-query attention; older torch supports it without an argument."""
CALL_COST = 1 << 13
"""Cost of one call, in products of a query and a key: padding that costs less than another call is cheaper than that call."""
MASK_ELEMENTS = 1 << 22
"""Largest mask that differs between sequences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call of attention: the queries and keys of some sequences, padded to the longest."""

    queries_GN: Tensor
    """int64, the place in the row of each query; 0 at padding."""
    keys_GK: Tensor
    """int64, the place in the row of each key, a common beginning's first; 0 at padding."""
    mask_G1NK: Tensor | None
    """bool, True at the keys that a query attends to, also as [1, 1, N, K]; None if these are all up to its own place."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """The tokens of a batch [B, L] in the order in which they pass through the layers."""

    tokens_S: Tensor
    """int64, the place in the flattened batch of each token of the row."""
    places_BL: Tensor
    """int64, the place in the row of each token of the batch; 0 at padding that is left out."""
    calls: Sequence[Call] = ()
    """The calls of attention for all sequences; empty if the row is the whole batch, padding included."""
    outputs_S: Tensor | None = None
    """int64, the place of each token of the row in the calls' outputs [G, N], one call after the other."""
    longest: int = 0
    """Most tokens of one sequence in the row."""
    query_bounds: Tensor | None = None
    """[B + 1] int32, the start in the row of each sequence, and the end of the last."""
    key_bounds: Tensor | None = None
    """[B + 1] int32, the start of each sequence's keys, a common beginning's included, one sequence after the other."""
    key_places: Tensor | None = None
    """int64, the place in the row of each of these keys; None if they are the row."""

    def to(self, device: torch.device) -> Row:
        """Returns the row with all tensors on `device`."""
        return replace(_on(self, device), calls=[_on(call, device) for call in self.calls])


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
    # NumPy, since torch takes several times longer for an operation on so few numbers.
    places_BL = np.zeros((len(lengths), longest), np.int64)
    own = [length - common for length, common in zip(lengths, shared, strict=True)]
    bounds = [0, *accumulate(own)]
    first = 0
    for b, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        if common:
            places_BL[b, :common] = places_BL[first, :common]
        else:
            first = b
        places_BL[b, common:length] = np.arange(bounds[b], bounds[b + 1])
    columns_L, lengths_B1, shared_B1 = np.arange(longest), np.array(lengths)[:, None], np.array(shared)[:, None]
    is_real_BL = columns_L < lengths_B1
    members = plan_calls(own, shared)
    calls = [_call([places_BL[b, : lengths[b]] for b in its], [shared[b] for b in its]) for its in members]
    outputs_S, end = np.zeros(bounds[-1], np.int64), 0
    for its, call in zip(members, calls, strict=True):
        for g, b in enumerate(its):
            start = end + g * call.queries_GN.shape[1]
            outputs_S[bounds[b] : bounds[b + 1]] = np.arange(start, start + own[b])
        end += call.queries_GN.numel()
    return Row(
        tokens_S=torch.from_numpy(np.flatnonzero(is_real_BL & (columns_L >= shared_B1))),
        places_BL=torch.from_numpy(places_BL),
        calls=calls,
        outputs_S=torch.from_numpy(outputs_S),
        longest=max(own),
        query_bounds=torch.tensor(bounds, dtype=torch.int32),
        key_bounds=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        key_places=torch.from_numpy(places_BL[is_real_BL]) if any(shared) else None,
    )


def plan_calls(own: Sequence[int], shared: Sequence[int]) -> list[list[int]]:
    """Groups sequences into calls of attention, so that padding and calls together cost least.

    Sequences are sorted by length. Each joins the call before it if the padding costs less than a call. Those without a common
    beginning have calls of their own, which need no mask.

    Args:
        own: [B] tokens of each sequence in the row.
        shared: [B] tokens of the common beginning that precede them; 0 for none.

    Returns:
        The numbers of the sequences of each call.
    """
    calls: list[list[int]] = []
    longest = most = 0  # the last call's own tokens, and its beginning's
    for b in sorted(range(len(own)), key=lambda b: (shared[b], own[b]), reverse=True):
        if calls and bool(shared[b]) == bool(most):
            count, padded = len(calls[-1]), max(longest, own[b])
            together = (count + 1) * padded * (padded + most)
            apart = count * longest * (longest + most) + own[b] * (own[b] + shared[b])
            if together - apart <= CALL_COST and (shared[b] == most or together <= MASK_ELEMENTS):
                calls[-1].append(b)
                longest = padded
                continue
        calls.append([b])
        longest, most = own[b], shared[b]
    return calls


def _call(places: Sequence[np.ndarray], shared: Sequence[int]) -> Call:
    """Returns the call of some sequences.

    Args:
        places: The place in the row of each token of each sequence.
        shared: Tokens of each one's common beginning.
    """
    most, longest = max(shared), max(len(its) - common for its, common in zip(places, shared, strict=True))
    keys_GK = np.zeros((len(places), most + longest), np.int64)
    for g, (its, common) in enumerate(zip(places, shared, strict=True)):
        keys_GK[g, :common] = its[:common]
        keys_GK[g, most : most + len(its) - common] = its[common:]
    mask_G1NK = None
    if most:
        # A token attends to its beginning, and to its own sequence up to itself: padding of the sequence comes after that.
        beginnings_G = np.array(shared[:1] if len(set(shared)) == 1 else shared)
        columns_K, rows_N1 = np.arange(most + longest), np.arange(longest)[:, None]
        is_own_NK = (columns_K >= most) & (columns_K <= most + rows_N1)
        mask_G1NK = torch.from_numpy((columns_K < beginnings_G[:, None, None, None]) | is_own_NK)
    keys = torch.from_numpy(keys_GK)
    return Call(queries_GN=keys[:, most:], keys_GK=keys, mask_G1NK=mask_G1NK)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes the language model use packed rows. The vision tower has its own attention inside each picture."""
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
    assert row.outputs_S is not None, "the row is not packed"
    # Tokens are rows of matrices, which torch gathers several times faster than by an index of another axis.
    query_SC, key_SC, value_SC = (each[0].transpose(0, 1).flatten(1) for each in (query_1ASD, key_1ASD, value_1ASD))
    outputs = []
    for call in row.calls:
        output_GAND = scaled_dot_product_attention(
            _heads(query_SC, call.queries_GN, query_1ASD),
            _heads(key_SC, call.keys_GK, key_1ASD),
            _heads(value_SC, call.keys_GK, value_1ASD),
            attn_mask=call.mask_G1NK,
            is_causal=call.mask_G1NK is None,
            scale=scaling,
            enable_gqa=True,
        )
        outputs.append(output_GAND.transpose(1, 2).flatten(2).flatten(0, 1))
    output_SC = _rows(torch.cat(outputs) if len(outputs) > 1 else outputs[0], row.outputs_S)
    return output_SC.view(1, len(output_SC), query_1ASD.shape[1], -1), None


def _heads(tokens_SC: Tensor, places_GN: Tensor, like_1ASD: Tensor) -> Tensor:
    """[G, A, N, D] the tokens at some places, with as many heads as `like_1ASD`."""
    return _rows(tokens_SC, places_GN).unflatten(2, (like_1ASD.shape[1], -1)).transpose(1, 2)


def _rows(tokens_SC: Tensor, places: Tensor) -> Tensor:
    """[…, C] the rows at some places […]. The gradients of a row that is at several places are added in float32 or better."""
    precise = torch.promote_types(tokens_SC.dtype, torch.float32)
    return embedding(places, tokens_SC.to(precise)).to(tokens_SC.dtype)


def _one_kernel(query_1ASD: Tensor, key_1ASD: Tensor, value_1ASD: Tensor, scale: float, row: Row) -> Tensor:
    """[1, S, A, D] by a flash kernel, in which the last queries of a sequence are at its last keys."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query_1ASD, key_1ASD, value_1ASD))
    if row.key_places is not None:
        key, value = key[row.key_places], value[row.key_places]
    causal = (-1, 0)
    output_SAD = varlen_attn(
        query,
        key,
        value,
        row.query_bounds,
        row.key_bounds,
        row.longest,
        row.places_BL.shape[1],
        scale=scale,
        window_size=causal,
        **SHARED_KEYS,
    )
    assert isinstance(output_SAD, Tensor)
    return output_SAD[None]


def _no_mask(*_: Any, **__: Any) -> None:
    """Returns no mask: the row replaces it."""


def _on(value: Any, device: torch.device) -> Any:
    """Returns a copy of a dataclass with its tensors on `device`."""
    tensors = {each.name: getattr(value, each.name) for each in fields(value)}
    moved = {name: tensor.to(device) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    return replace(value, **moved)
