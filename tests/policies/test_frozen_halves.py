"""LoRA's base weights in bfloat16, where the checkpoint has them so: half the memory, and the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from policies.export import exported_metadata, exported_parameters, save_policy
from policies.loading import load_policy
from policies.small.qwen3_vl import small_processor
from rl.config import LoraConfig, TrainConfig
from rl.learner import Learner
from tests.learning import config, difference, parameters, rollout
from tests.ranks import RankPool


@pytest.fixture
def published(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16, as those of the hub."""
    model = load_policy(policy, dtype=torch.float32, device="cpu")
    return save_policy(model, small_processor(), tmp_path_factory.mktemp("published"), dtype=torch.bfloat16)


def options(folder: Path, dtype: str = "bfloat16") -> TrainConfig:
    return replace(config(dtype=dtype), model=str(folder), lora=LoraConfig(rank=4), kl_coefficient=0.1)


def halved(learner: Learner) -> set[str]:
    return {name for name, parameter in learner.model.named_parameters() if parameter.dtype == torch.bfloat16}


def test_products_of_frozen_matrices_stay_in_bfloat16_and_all_else_in_float32(published: Path):
    learner = Learner(options(published), published)
    names = halved(learner)
    for part in ("self_attn.q_proj.base_layer.weight", "self_attn.k_proj.base_layer.weight"):
        assert f"model.language_model.layers.0.{part}" in names
    assert "model.visual.blocks.0.attn.qkv.weight" in names
    assert any("mlp.experts.gate_up_proj" in name or "mlp.up_proj.base_layer" in name for name in names)
    for part in ("lora", "norm", "embed", "bias", "mlp.gate.weight"):
        assert not any(part in name for name in names), part


def two_steps(folder: Path) -> tuple[Learner, dict[str, Tensor]]:
    learner = Learner(options(folder), folder)
    assert [learner.step(rollout()).metrics for _ in range(2)][1]["policy/grad_norm"] > 0
    return learner, {name: tensor.to(torch.bfloat16) for name, tensor in exported_parameters(learner.model)}


def test_what_a_dense_policy_learns_and_exports_is_the_same_to_the_last_bit(
    dense_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = load_policy(dense_policy, dtype=torch.float32, device="cpu")
    folder = save_policy(model, small_processor(), tmp_path, dtype=torch.bfloat16)
    learner, ours = two_steps(folder)
    assert halved(learner)
    monkeypatch.setattr("rl.learner.policy.halve_frozen", lambda model, path: None)
    learner, theirs = two_steps(folder)
    assert not halved(learner)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_what_is_exported_has_the_type_that_is_announced(published: Path):
    model = Learner(options(published), published).model
    exported = [(name, tensor.dtype, tensor.shape) for name, tensor in exported_parameters(model)]
    assert exported_metadata(model) == exported
    assert {dtype for _, dtype, _ in exported} == {torch.float32, torch.bfloat16}


def test_a_checkpoint_in_float32_or_a_learner_in_float32_keeps_float32(policy: Path, published: Path):
    assert not halved(Learner(options(policy), policy))
    assert not halved(Learner(options(published, dtype="float32"), published))


def test_a_resumed_run_goes_on_to_the_last_bit(published: Path, tmp_path: Path):
    first = Learner(options(published), published)
    first.step(rollout())
    first.save(tmp_path)
    assert {t.dtype for t in load_policy(tmp_path, dtype="auto", device="cpu").parameters()} == {torch.float32}
    second = Learner(options(published), tmp_path)
    second.load(tmp_path)
    assert halved(second) == halved(first)
    for learner in (first, second):
        learner.step(rollout())
    assert all(torch.equal(tensor, parameters(second)[name]) for name, tensor in parameters(first).items())


def adapters_after_a_step(folder: Path, made: TrainConfig) -> tuple[int, Tensor]:
    learner = Learner(made, folder)
    learner.step(rollout())
    its = parameters(learner)
    return len(halved(learner)), torch.cat([tensor.flatten() for name, tensor in its.items() if "lora_B" in name])


@pytest.mark.slow
def test_ranks_that_share_the_policy_keep_it_so_too(ranks: RankPool, published: Path):
    one = adapters_after_a_step(published, options(published))
    for num_halved, adapters in ranks.run(2, adapters_after_a_step, published, options(published)):
        assert num_halved == one[0] > 0
        assert difference(adapters, one[1]) < 0.5  # FSDP2 rounds the residual stream, too; AdamW's first step is a sign
