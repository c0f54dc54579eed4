"""Sizes of Qwen3-VL models, from a config.json or as published; needs no torch, no weights and no hub.

H is the hidden size, h that of the vision tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATCH_VALUES = 3 * 2 * 16 * 16
"""Values of one patch: colours × frames × height × width."""
MERGE = 4
"""Patches per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape:
    """Sizes of the vision tower."""

    layers: int
    """Blocks."""
    hidden: int
    """h."""
    intermediate: int
    """Width of a block's MLP."""
    positions: int
    """Position embeddings."""
    num_deepstack: int
    """Levels that are added to the language model's first layers; each has a merger."""
    out: int
    """H."""

    @property
    def block(self) -> int:
        """Parameters of one block: two LayerNorms, attention and MLP, all with biases."""
        h, i = self.hidden, self.intermediate
        return 4 * h + (4 * h * h + 4 * h) + (2 * h * i + h + i)

    @property
    def rest(self) -> int:
        """Parameters outside the blocks: patch and position embeddings, mergers."""
        h, wide = self.hidden, MERGE * self.hidden
        merger = wide * wide + wide + wide * self.out + self.out
        embeddings = PATCH_VALUES * h + h + self.positions * h
        # The last merger normalises before merging, DeepStack's mergers after it.
        return embeddings + merger + 2 * h + self.num_deepstack * (merger + 2 * wide)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a Qwen3-VL, dense or MoE."""

    layers: int
    """Layers of the language model."""
    hidden: int
    """H."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Size of a head."""
    intermediate: int
    """Width of a dense MLP."""
    vocabulary: int
    """Tokens of the vocabulary."""
    tied: bool
    """True if input and output embeddings are the same."""
    vision: VisionShape
    experts: int = 0
    """Experts per layer; 0 in a dense model."""
    experts_per_token: int = 0
    expert_intermediate: int = 0
    """Width of an expert."""

    @property
    def mlp(self) -> int:
        """Parameters of one layer's MLP, or of its router and experts in a MoE."""
        if self.experts:
            return self.experts * self.hidden * (1 + 3 * self.expert_intermediate)
        return 3 * self.hidden * self.intermediate

    @property
    def layer(self) -> int:
        """Parameters of one layer: attention without biases, norms of queries and keys, two norms, MLP."""
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return 2 * self.hidden * (width + kv_width) + 2 * self.head_dim + 2 * self.hidden + self.mlp

    @property
    def embedding(self) -> int:
        """Parameters of one embedding."""
        return self.vocabulary * self.hidden

    @property
    def largest(self) -> int:
        """Parameters of the largest tensor: an embedding, or gate and up of a layer's experts."""
        return max(self.embedding, 2 * self.experts * self.hidden * self.expert_intermediate)

    @property
    def language(self) -> int:
        """Parameters of the language model, its output embedding included."""
        return self.layers * self.layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def tower(self) -> int:
        """Parameters of the vision tower."""
        return self.vision.layers * self.vision.block + self.vision.rest

    @property
    def matrices(self) -> int:
        """Parameters of layers and blocks, and of an output embedding of its own: what is multiplied and not looked up."""
        return self.layers * self.layer + self.vision.layers * self.vision.block + (0 if self.tied else self.embedding)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.language + self.tower

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token in a bfloat16 key-value cache, over all layers."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Returns the sizes in a config.json.

    Raises:
        ValueError: A field is missing.
    """
    try:
        text, vision = config["text_config"], config["vision_config"]
        return ModelShape(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            head_dim=text["head_dim"],
            intermediate=text["intermediate_size"],
            vocabulary=text["vocab_size"],
            # Published configs have it at the top, those of transformers in both places.
            tied=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
            experts=text.get("num_experts", text.get("num_local_experts", 0)),
            experts_per_token=text.get("num_experts_per_tok", 0),
            expert_intermediate=text.get("moe_intermediate_size", 0),
            vision=VisionShape(
                layers=vision["depth"],
                hidden=vision["hidden_size"],
                intermediate=vision["intermediate_size"],
                positions=vision["num_position_embeddings"],
                num_deepstack=len(vision["deepstack_visual_indexes"]),
                out=vision["out_hidden_size"],
            ),
        )
    except KeyError as error:
        raise ValueError(f"config.json lacks {error.args[0]!r}: it is not of a Qwen3-VL") from error


def _vision(out: int, *, large: bool = True) -> VisionShape:
    """Returns a published tower: SigLIP-2 large for 2B and 4B, so400m for the others."""
    size = {"layers": 27, "hidden": 1152, "intermediate": 4304} if large else {}
    return VisionShape(
        **({"layers": 24, "hidden": 1024, "intermediate": 4096} | size), positions=2304, num_deepstack=3, out=out
    )


def _published(vision: VisionShape, **text: Any) -> ModelShape:
    return ModelShape(head_dim=128, vocabulary=151936, vision=vision, **({"tied": False} | text))


PUBLISHED: dict[str, ModelShape] = {
    "2B": _published(
        _vision(2048, large=False), layers=28, hidden=2048, heads=16, kv_heads=8, intermediate=6144, tied=True
    ),
    "4B": _published(
        _vision(2560, large=False), layers=36, hidden=2560, heads=32, kv_heads=8, intermediate=9728, tied=True
    ),
    "8B": _published(_vision(4096), layers=36, hidden=4096, heads=32, kv_heads=8, intermediate=12288),
    "32B": _published(_vision(5120), layers=64, hidden=5120, heads=64, kv_heads=8, intermediate=25600),
    "30B-A3B": _published(
        _vision(2048),
        layers=48,
        hidden=2048,
        heads=32,
        kv_heads=4,
        intermediate=6144,
        experts=128,
        experts_per_token=8,
        expert_intermediate=768,
    ),
    "235B-A22B": _published(
        _vision(4096),
        layers=94,
        hidden=4096,
        heads=64,
        kv_heads=4,
        intermediate=12288,
        experts=128,
        experts_per_token=8,
        expert_intermediate=1536,
    ),
}
"""Size → published model (arXiv 2511.21631)."""


DEEPSTACK = {24: [5, 11, 17], 27: [8, 16, 24]}
"""Blocks of a published tower → those whose outputs DeepStack takes."""


def published_config(size: str) -> dict[str, Any]:
    """Returns the config.json of a published model.

    Args:
        size: A key of `PUBLISHED`.
    """
    shape = PUBLISHED[size]
    family, kind = ("qwen3_vl_moe", "Qwen3VLMoe") if shape.experts else ("qwen3_vl", "Qwen3VL")
    return {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "model_type": family,
        "transformers_version": "4.57.0.dev0",
        "text_config": _text_config(shape) | {"model_type": f"{family}_text"},
        "vision_config": _vision_config(shape.vision) | {"model_type": family},
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": shape.tied,
    }


def _text_config(shape: ModelShape) -> dict[str, Any]:
    experts = {
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        "moe_intermediate_size": shape.expert_intermediate,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "dtype": "bfloat16",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5_000_000,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        **(experts if shape.experts else {}),
    }


def _vision_config(shape: VisionShape) -> dict[str, Any]:
    return {
        "depth": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_heads": 16,
        "num_position_embeddings": shape.positions,
        "deepstack_visual_indexes": DEEPSTACK[shape.layers],
        "out_hidden_size": shape.out,
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
    }


def shape_of_checkpoint(model: str) -> ModelShape:
    """Returns the sizes of a model from its folder or hub name.

    Raises:
        ValueError: There is no such model, or it is not a Qwen3-VL.
    """
    from transformers import PreTrainedConfig

    from policies.loading import supported_model

    config_json, _ = PreTrainedConfig.get_config_dict(supported_model(model))
    return shape_of(config_json)


def known_shape(model: str) -> ModelShape | None:
    """Returns the sizes of a model from its folder or hub name; None if they cannot be read."""
    try:
        return shape_of_checkpoint(model)
    except (OSError, ValueError):
        return None
