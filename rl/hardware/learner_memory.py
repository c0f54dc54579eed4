"""Memory of a learner on a GPU: what a rank keeps between steps, and what it needs at the peak of a step.

Activations are the tensors that autograd keeps, counted one by one for the kernels that run on a GPU (packed attention, fused
norms). Tests compare the sum with measured peaks.

H, I: the model's hidden and intermediate size; Q, K: width of all query and of all key heads; h, i: of the vision tower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.model_sizes import MERGE, ModelShape
from rl.config import LearningOptions, LoraConfig
from rollout.config import RolloutConfig

STATE = {"weights": 4, "gradients": 4, "AdamW's moments": 8}
"""Bytes per parameter: master weights are float32."""
LOGIT_BYTES = (1 << 25) * (2 + 4 + 2)
"""One chunk of logits: the matrix product, its float32 copy, and the gradient."""
PIXELS_PER_TOKEN = 32 * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """One thing that takes memory."""

    name: str
    bytes: float
    """On one GPU; in host memory, on one node; on disk, of one checkpoint."""
    why: str = ""
    """The computation in words."""


def image_tokens(rollout: RolloutConfig) -> int:
    """Returns the most image and video tokens of a prompt, from the pixel limits or else from the room in the context."""
    room = rollout.max_model_len - rollout.max_tokens
    if rollout.max_image_pixels is None or (rollout.max_videos and rollout.max_video_pixels is None):
        return room
    pixels = rollout.max_images * rollout.max_image_pixels + rollout.max_videos * (rollout.max_video_pixels or 0) / 2
    return min(room, round(pixels / PIXELS_PER_TOKEN))


def adapter_parameters(lora: LoraConfig, shape: ModelShape) -> int:
    """Returns the parameters of LoRA's adapters: rank × (in + out) for each matrix."""
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, wide = shape.hidden, shape.expert_intermediate
    vision = shape.vision
    sizes = {
        "language": shape.layers
        * (2 * (hidden + width) + 2 * (hidden + kv) + (0 if shape.experts else 3 * (hidden + shape.intermediate))),
        "vision": vision.layers * (5 * vision.hidden + vision.hidden + 2 * (vision.hidden + vision.intermediate)),
        "experts": shape.layers * shape.experts * (hidden + 2 * wide + hidden + wide),
    }
    return lora.rank * sum(sizes[part] for part in lora.parts)


def state_memory(config: LearningOptions, shape: ModelShape) -> list[MemoryItem]:
    """Returns weights, gradients and optimizer state of one rank."""
    ranks = config.learner.shards
    learning, added = _learning(config, shape)
    counts = {"weights": shape.parameters + added, "gradients": learning, "AdamW's moments": learning}
    over = f" / {ranks} ranks" if ranks > 1 else ""
    items = [
        MemoryItem(name=name, bytes=size * counts[name] / ranks, why=f"{size} B × {counts[name] / 1e9:.2f}G{over}")
        for name, size in STATE.items()
    ]
    if halved := _halved(config, shape):
        weights = 4 * counts["weights"] - 2 * halved
        why = f"4 B × {counts['weights'] / 1e9:.2f}G, of which {halved / 1e9:.2f}G at 2 B{over}"
        items[0] = MemoryItem(name="weights", bytes=weights / ranks, why=why)
    if config.kl_coefficient and not config.lora.rank:
        items.append(
            MemoryItem(
                name="reference", bytes=4 * shape.parameters / ranks, why=f"4 B × {shape.parameters / 1e9:.2f}G{over}"
            )
        )
    return items


def _halved(config: LearningOptions, shape: ModelShape) -> int:
    """Returns LoRA's frozen parameters that stay in bfloat16, as published."""
    return shape.matrices if config.lora.rank and config.learner.dtype != "float32" else 0


def checkpoint_size(config: LearningOptions, shape: ModelShape) -> list[MemoryItem]:
    """Returns what a checkpoint takes on disk, however many ranks write it."""
    learning, added = _learning(config, shape)
    moments = STATE["AdamW's moments"]
    return [
        MemoryItem(name="weights", bytes=4.0 * shape.parameters, why=f"4 B × {shape.parameters / 1e9:.2f}G, float32"),
        MemoryItem(
            name="optimizer and adapters" if added else "optimizer",
            bytes=float(moments * learning + 4 * added),
            why=f"{moments + (4 if added else 0)} B × {learning / 1e9:.2f}G",
        ),
    ]


def _learning(config: LearningOptions, shape: ModelShape) -> tuple[int, int]:
    """Returns the parameters that learn, and those of adapters."""
    if config.lora.rank:
        added = adapter_parameters(config.lora, shape)
        return added, added
    return shape.parameters - (shape.tower if config.optimizer.vision_learning_rate == 0 else 0), 0


def peak_memory(config: LearningOptions, shape: ModelShape, group_size: int) -> list[MemoryItem]:
    """Returns what a rank needs in addition at the peak of a microbatch: in the backward pass of the last layer."""
    learner = config.learner
    tokens, size = learner.microbatch_tokens, 4 if learner.dtype == "float32" else 2
    patches = MERGE * _images_at_once(config, group_size)
    sharded = learner.gpus > 1 or learner.offload
    root = shape.embedding * (1 if shape.tied else 2) + shape.vision.rest
    trains = 0 if config.lora.rank else 1
    if sharded:
        # The current layer and the prefetched next one. Parameters outside the layers stay gathered from first layer to last.
        gathered = size * (root + 2 * shape.layer)
        # FSDP2 keeps a layer's gradients twice, as computed and as reduced, and the root's until the end.
        gradients = trains * ((size + 4) * shape.layer + size * root)
        copies = MemoryItem(name="gathered weights", bytes=gathered, why="2 layers, embeddings and mergers")
    else:
        cast = shape.parameters - _halved(config, shape) - (0 if shape.tied else shape.embedding)
        kept = 0 if learner.dtype == "float32" else 2 * cast
        # With checkpointing the casts of the forward pass are freed before the layers run again.
        copies = MemoryItem(name="working weights", bytes=float(kept), why="cast by autocast")
        gradients = trains * size * shape.embedding
    saved, layer = _layer_bytes(shape, size, sharded)
    block, kept_block = 22 * shape.vision.hidden + 4 * shape.vision.intermediate, 2 * shape.vision.hidden
    if learner.gradient_checkpointing:
        activations = tokens * (shape.layers * saved + layer) + patches * (shape.vision.layers * kept_block)
        why = f"{shape.layers} layers × {saved} B, one × {layer} B, × {tokens} tokens"
    else:
        activations = tokens * shape.layers * layer + patches * shape.vision.layers * block
        why = f"{shape.layers} layers × {layer} B × {tokens} tokens"
    in_flight = size * tokens * (3 * (shape.intermediate if not shape.experts else 0) + 2 * shape.hidden)
    if shape.experts:
        in_flight += size * tokens * shape.experts_per_token * (3 * shape.expert_intermediate + 2 * shape.hidden)
    return [
        copies,
        MemoryItem(name="activations", bytes=activations, why=why),
        MemoryItem(name="gradients in flight", bytes=gradients + in_flight, why="of one layer, and of the embeddings"),
        MemoryItem(
            name="logits", bytes=LOGIT_BYTES + 8 * tokens * shape.hidden, why="a chunk of the vocabulary at a time"
        ),
    ]


def _layer_bytes(shape: ModelShape, size: int, sharded: bool) -> tuple[int, int]:
    """Returns the bytes per token of a layer that checkpointing keeps, and those that autograd keeps without it.

    Attention keeps queries before and after their norm, and its output (3Q); keys before and after their norm, and values (3K). An
    MLP keeps gate, the activation of gate, up, and their product (4I). Norms keep their input, and products that input (2H each).
    """
    residual = size if sharded else 4  # autocast leaves the residual stream in float32
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    mlp = 4 * size * shape.intermediate
    if shape.experts:
        k = shape.experts_per_token
        mlp = k * (2 * size * shape.hidden + 4 * size * shape.expert_intermediate + 38) + 4 * shape.experts
    kept = 2 * (residual + size) * shape.hidden + 3 * size * (width + kv) + 4 * shape.heads + mlp
    return residual * shape.hidden, kept


def _images_at_once(config: LearningOptions, group_size: int) -> int:
    """Returns the tokens of all distinct images of a microbatch; the completions of a group share their images."""
    per_prompt = image_tokens(config.rollout)
    typical = per_prompt + 0.75 * config.rollout.max_tokens
    prompts = math.ceil(config.learner.microbatch_tokens / (group_size * typical)) + 1
    return min(config.learner.microbatch_tokens, prompts * per_prompt)
