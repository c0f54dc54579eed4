"""Published sizes on the meta device: what each of many ranks keeps, and names, shapes and layouts of what leaves the learner."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import Transpose

from policies.dtensor import local_shard
from policies.export import exported_metadata
from policies.lora import EXPERT_PARAMETERS
from policies.model_sizes import PUBLISHED, ModelShape, published_config
from policies.response_logprobs import ResponseLogprobs
from policies.sharding import empty_policy, shard_policy
from rl.config import LearnerConfig, TrainConfig
from rl.hardware.learner_memory import state_memory

ATTENTION = "q_proj.weight k_proj.weight v_proj.weight o_proj.weight q_norm.weight k_norm.weight".split()
BLOCK = "norm1 norm2 attn.qkv attn.proj mlp.linear_fc1 mlp.linear_fc2".split()
MERGER = "norm linear_fc1 linear_fc2".split()


def both(names: list[str]) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def published_names(shape: ModelShape) -> set[str]:
    """The names in a published checkpoint's index."""
    mlp = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
    if shape.experts:
        mlp = ["gate.weight", "experts.gate_up_proj", "experts.down_proj"]
    layer = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    layer += [f"self_attn.{name}" for name in ATTENTION] + [f"mlp.{name}" for name in mlp]
    tower = ["patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed.weight"]
    tower += [f"blocks.{number}.{name}" for number in range(shape.vision.layers) for name in both(BLOCK)]
    tower += [f"merger.{name}" for name in both(MERGER)]
    tower += [f"deepstack_merger_list.{number}.{name}" for number in range(3) for name in both(MERGER)]
    return {
        *(f"model.language_model.layers.{number}.{name}" for number in range(shape.layers) for name in layer),
        "model.language_model.embed_tokens.weight",
        "model.language_model.norm.weight",
        *(f"model.visual.{name}" for name in tower),
        *([] if shape.tied else ["lm_head.weight"]),
    }


@contextmanager
def fake_ranks(number: int, rank: int = 0) -> Iterator[DeviceMesh]:
    """One of many ranks, whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=number)
    try:
        yield init_device_mesh("cpu", (number,))
    finally:
        dist.destroy_process_group()


def empty(size: str, folder: Path) -> PreTrainedModel:
    (folder / "config.json").write_text(json.dumps(published_config(size)))
    return empty_policy(folder)


def sharded(size: str, folder: Path, mesh: DeviceMesh) -> PreTrainedModel:
    policy = ResponseLogprobs(empty(size, folder), temperature=1.0, packed=True)
    shard_policy(policy, mesh, dtype=torch.bfloat16)
    return policy.model


def num_kept(model: PreTrainedModel) -> int:
    """Parameters of this rank's rows."""
    return sum(local_shard(parameter)[0].numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("size", "ranks", "billions"),
    [("2B", 8, 0.266), ("8B", 8, 1.096), ("30B-A3B", 8, 3.88), ("30B-A3B", 64, 0.485), ("235B-A22B", 64, 3.68)],
)
def test_a_rank_keeps_as_many_parameters_as_the_memory_plan_says(
    size: str, ranks: int, billions: float, tmp_path: Path
):
    config = TrainConfig(model="m", learner=LearnerConfig(gpus=ranks))
    weights = next(item for item in state_memory(config, PUBLISHED[size]) if item.name == "weights")
    with fake_ranks(ranks) as mesh:
        kept = num_kept(sharded(size, tmp_path, mesh))
    assert kept / 1e9 == pytest.approx(billions, rel=2e-3)
    assert 4 * kept == pytest.approx(weights.bytes, rel=2e-3)


def test_all_ranks_together_keep_every_parameter_once(tmp_path: Path):
    kept = []
    for rank in range(3):  # which divide no matrix evenly
        with fake_ranks(3, rank) as mesh:
            kept.append(num_kept(sharded("2B", tmp_path, mesh)))
    assert sum(kept) == PUBLISHED["2B"].parameters
    assert len(set(kept)) > 1


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_sharded_policy_leaves_the_learner_under_the_published_names(size: str, tmp_path: Path):
    with fake_ranks(64) as mesh:
        metadata = exported_metadata(sharded(size, tmp_path, mesh))
    names = [name for name, _, _ in metadata]
    assert len(set(names)) == len(names)
    assert set(names) == published_names(PUBLISHED[size])
    assert sum(shape.numel() for _, _, shape in metadata) == PUBLISHED[size].parameters
    assert {dtype for _, dtype, _ in metadata} == {torch.float32}


@pytest.mark.parametrize(
    ("size", "shapes"),
    [
        # 16 query heads and 8 key-value heads of 128; a tower of 1,024, of which 2 × 2 patches become a token of 2,048
        ("2B", {"self_attn.q_proj": (2048, 2048), "self_attn.k_proj": (1024, 2048), "mlp.down_proj": (2048, 6144)}),
        # 128 experts of 768 and 1,536: gate and up side by side, input first
        ("30B-A3B", {"mlp.experts.gate_up_proj": (128, 2048, 1536), "mlp.experts.down_proj": (128, 768, 2048)}),
        ("235B-A22B", {"mlp.experts.gate_up_proj": (128, 4096, 3072), "mlp.experts.down_proj": (128, 1536, 4096)}),
    ],
)
def test_shapes_are_those_of_the_published_checkpoint_worked_by_hand(
    size: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path
):
    found = {name.removesuffix(".weight"): tuple(shape) for name, _, shape in exported_metadata(empty(size, tmp_path))}
    for layer in (0, PUBLISHED[size].layers - 1):
        for name, shape in shapes.items():
            assert found[f"model.language_model.layers.{layer}.{name}"] == shape
    assert found["model.language_model.embed_tokens"] == (151936, PUBLISHED[size].hidden)
    wide = 4 * PUBLISHED[size].vision.hidden
    assert found["model.visual.deepstack_merger_list.2.linear_fc1"] == (wide, wide)
    assert found["model.visual.deepstack_merger_list.2.linear_fc2"] == (PUBLISHED[size].hidden, wide)
    assert found["model.visual.patch_embed.proj"] == (PUBLISHED[size].vision.hidden, 3, 2, 16, 16)


@pytest.mark.parametrize("size", ["8B", "30B-A3B"])
def test_transformers_transposes_what_we_transpose_and_renames_nothing(size: str):
    converters = get_checkpoint_conversion_mapping(published_config(size)["model_type"]) or []
    for name in published_names(PUBLISHED[size]):
        its = [each for each in converters if any(re.search(pattern, name) for pattern in each.source_patterns)]
        assert bool(its) == name.endswith(EXPERT_PARAMETERS), name
        for converter in its:
            assert converter.target_patterns == converter.source_patterns
            (operation,) = converter.operations
            assert isinstance(operation, Transpose) and {operation.dim0, operation.dim1} == {1, 2}
