"""Faster layers of Qwen3-VL's vision tower, with the same results up to rounding.

transformers embeds patches by a convolution, whose kernels are many times slower than the equal matrix product. Its attention calls
a kernel once for each picture.

Shapes: S patches of all pictures, U pictures of one size, N patches of each, A heads, D head size.
"""

from __future__ import annotations

from itertools import groupby
from types import MethodType

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionPatchEmbed,
    apply_rotary_pos_emb_vision,
)


def use_fast_vision(model: PreTrainedModel) -> None:
    """Makes the vision tower embed patches by a matrix product, and attend in one call to all pictures of a size."""
    tower = model.model.visual
    tower.patch_embed.forward = MethodType(embed_patches, tower.patch_embed)
    for block in tower.blocks:
        block.attn.forward = MethodType(attend, block.attn)


def embed_patches(module: Qwen3VLVisionPatchEmbed, pixels_SC: Tensor) -> Tensor:
    """Replaces the module's forward: a convolution whose stride is its kernel is a matrix product."""
    weight = module.proj.weight
    return linear(pixels_SC.to(weight.dtype), weight.flatten(1), module.proj.bias)


def attend(
    module: Qwen3VLVisionAttention,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **_: object,
) -> Tensor:
    """Replaces the module's forward: attention inside each picture, or inside each time step of a video.

    Args:
        module: The layer.
        hidden_states: [S, H].
        cu_seqlens: [pictures + 1] int32, the first patch of each picture, and the end of the last.
        position_embeddings: Cosines and sines of the rotation.

    Returns:
        [S, H].
    """
    query_SAD, key_SAD, value_SAD = module.qkv(hidden_states).unflatten(1, (3, module.num_heads, -1)).unbind(1)
    query_SAD, key_SAD = apply_rotary_pos_emb_vision(query_SAD, key_SAD, *position_embeddings)
    query_SAD, key_SAD = query_SAD.to(value_SAD.dtype), key_SAD.to(value_SAD.dtype)
    lengths = cu_seqlens.diff().tolist()
    if value_SAD.is_cuda and value_SAD.dtype in (torch.bfloat16, torch.float16):
        bounds, longest = cu_seqlens.to(torch.int32), max(lengths)
        output = varlen_attn(query_SAD, key_SAD, value_SAD, bounds, bounds, longest, longest, scale=module.scaling)
        assert isinstance(output, Tensor)
        return module.proj(output.flatten(1))
    runs = [(length, len(list(equal))) for length, equal in groupby(lengths)]
    parts = (each.split([length * count for length, count in runs]) for each in (query_SAD, key_SAD, value_SAD))
    outputs = []
    for (length, count), *parts_SAD in zip(runs, *parts, strict=True):
        query, key, value = (each.unflatten(0, (count, length)).transpose(1, 2) for each in parts_SAD)
        output_UAND = scaled_dot_product_attention(query, key, value, scale=module.scaling)
        outputs.append(output_UAND.transpose(1, 2).flatten(2).flatten(0, 1))
    return module.proj(torch.cat(outputs) if len(outputs) > 1 else outputs[0])
