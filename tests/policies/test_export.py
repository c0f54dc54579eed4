from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from policies.export import exported_metadata, exported_parameters, save_policy
from policies.loading import load_policy, load_processor
from policies.small.qwen3_vl import save_small_policy, small_config, small_model, small_processor

KINDS = pytest.mark.parametrize("kind", ["dense", "moe"])
GATE_UP = "model.language_model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.language_model.layers.0.mlp.experts.down_proj"


def built(kind: str, **text) -> PreTrainedModel:
    return small_model(small_config(kind, **text), seed=0)


def loaded(kind: str, folder: Path) -> PreTrainedModel:
    return load_policy(save_small_policy(folder, kind=kind, seed=0), dtype=torch.float32, device="cpu")


def assert_same_parameters(left: PreTrainedModel, right: PreTrainedModel) -> None:
    theirs = dict(right.named_parameters())
    for name, parameter in left.named_parameters():
        assert torch.equal(parameter, theirs.pop(name)), name
    assert theirs == {}


@KINDS
@pytest.mark.parametrize("origin", ["built", "loaded"])
def test_saved_policy_comes_back_bit_for_bit(kind: str, origin: str, tmp_path: Path):
    model = built(kind) if origin == "built" else loaded(kind, tmp_path / "source")
    folder = save_policy(model, small_processor(), tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(again) is type(model)
    assert_same_parameters(model, again)
    assert again.config.text_config.to_dict() == model.config.text_config.to_dict()
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert load_processor(folder).apply_chat_template([{"role": "user", "content": "a"}]) == "<|im_start|>ua<|im_end|>"


@KINDS
@pytest.mark.parametrize("tied", [True, False])
def test_exported_names_shapes_and_values_are_those_on_disk(kind: str, tied: bool, tmp_path: Path):
    model = built(kind, tie_word_embeddings=tied)
    on_disk = load_file(save_policy(model, small_processor(), tmp_path) / "model.safetensors")
    exported = dict(exported_parameters(model))
    assert exported.keys() == on_disk.keys()
    assert all(torch.equal(tensor, on_disk[name]) for name, tensor in exported.items())
    assert ("lm_head.weight" in exported) == (not tied)


def test_experts_are_laid_out_input_first_and_share_memory_with_the_model():
    model = built("moe")
    exported = dict(exported_parameters(model))
    assert exported[GATE_UP].shape == (8, 192, 2 * 128)
    assert exported[DOWN].shape == (8, 128, 192)
    assert exported[GATE_UP].data_ptr() == model.get_parameter(GATE_UP).data_ptr()
    assert torch.equal(exported[GATE_UP][3, 5], model.get_parameter(GATE_UP)[3, :, 5])


@KINDS
def test_metadata_describes_the_parameters_in_their_order(kind: str):
    model = built(kind)
    assert exported_metadata(model) == [(name, t.dtype, t.shape) for name, t in exported_parameters(model)]
    with torch.device("meta"):
        without_data = AutoModelForImageTextToText.from_config(model.config)
    assert exported_metadata(without_data) == exported_metadata(model)


def test_exported_parameters_carry_no_gradient():
    assert not any(tensor.requires_grad for _, tensor in exported_parameters(built("moe")))


def test_precision_on_disk_can_be_chosen_and_the_model_stays_as_it_was(tmp_path: Path):
    model = built("moe")
    save_policy(model, small_processor(), tmp_path, dtype=torch.bfloat16)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == config["vision_config"]["dtype"] == "bfloat16"
    assert again.dtype == torch.bfloat16
    assert model.dtype == model.config.dtype == torch.float32
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.bfloat16())


def test_large_policy_is_cut_into_shards(tmp_path: Path):
    model = built("dense")
    save_policy(model, small_processor(), tmp_path, max_shard_bytes=4_000_000)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) >= 4
    assert all(shard.stat().st_size < 4_100_000 for shard in shards)
    assert_same_parameters(model, AutoModelForImageTextToText.from_pretrained(tmp_path))


def test_saving_again_replaces_the_weights(tmp_path: Path):
    model = built("dense")
    save_policy(model, small_processor(), tmp_path)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    save_policy(model, small_processor(), tmp_path)
    assert_same_parameters(model, AutoModelForImageTextToText.from_pretrained(tmp_path))
