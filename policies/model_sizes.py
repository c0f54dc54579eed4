"""What of a Qwen3-VL its size depends on: read from a config.json, or as published. No torch, no weights, no hub.

H is the hidden size, h that of the vision tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATCH_VALUES = 3 * 2 * 16 * 16
"""Colours × frames × pixels of one patch."""
MERGE = 4
"""Patches that become one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape:
    """The vision tower.

    Attributes:
        layers: Blocks.
        hidden: h.
        intermediate: Width of a block's MLP.
        positions: Learnt position embeddings.
        num_deepstack: Levels that are added to the language model's first layers, each with a merger of its own.
        out: H.
    """

    layers: int
    hidden: int
    intermediate: int
    positions: int
    num_deepstack: int
    out: int

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
        # The last merger normalises before it merges, DeepStack's after.
        return embeddings + merger + 2 * h + self.num_deepstack * (merger + 2 * wide)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A Qwen3-VL, dense or MoE.

    Attributes:
        layers: Of the language model.
        hidden: H.
        heads: Of queries.
        kv_heads: Of keys and values.
        head_dim: Size of a head.
        intermediate: Width of a dense MLP.
        vocabulary: Words.
        tied: Whether input and output embeddings are one.
        experts: Per layer; 0 in a dense model.
        experts_per_token: That each token goes through.
        expert_intermediate: Width of an expert.
        vision: The tower.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    vision: VisionShape
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0

    @property
    def mlp(self) -> int:
        """Parameters of one layer's MLP, or of its router and experts."""
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
    def language(self) -> int:
        """Parameters of the language model, its output embedding included."""
        return self.layers * self.layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def tower(self) -> int:
        """Parameters of the vision tower."""
        return self.vision.layers * self.vision.block + self.vision.rest

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.language + self.tower

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token in a bfloat16 key-value cache, over all layers."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json of the family tells.

    Raises:
        ValueError: It lacks a field.
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
            # Published configs have it at the top; what transformers writes has it in both.
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
        raise ValueError(f"config.json lacks {error.args[0]!r}: it is not a Qwen3-VL's") from error


def _vision(out: int, *, large: bool = True) -> VisionShape:
    """The published towers: SigLIP-2 large for 2B and 4B, so400m for the others."""
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
"""The family, by the names of its sizes (arXiv 2511.21631)."""


def shape_of_checkpoint(model: str) -> ModelShape:
    """The shape of a folder's or hub name's model.

    Raises:
        ValueError: There is no such model, or it is no Qwen3-VL.
    """
    from transformers import PreTrainedConfig

    from policies.loading import supported_model

    config_json, _ = PreTrainedConfig.get_config_dict(supported_model(model))
    return shape_of(config_json)
