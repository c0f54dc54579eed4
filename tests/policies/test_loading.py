from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.loading import load_policy, load_processor, vision_token_ids
from policies.small.qwen3_vl import save_small_policy, small_config, small_processor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small_policy(tmp_path / "policy", kind="dense", seed=0)


def load(path_or_name: Path | str):
    return load_policy(path_or_name, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_loaded_policy_trains_every_parameter_with_an_image(tmp_path: Path, kind: str):
    model = load(save_small_policy(tmp_path, kind=kind, seed=0))
    assert model.config._attn_implementation == "sdpa"
    inputs = load_processor(tmp_path)(
        text=["<|vision_start|><|image_pad|><|vision_end|>17"],
        images=[torch.randint(0, 256, (3, 64, 192), dtype=torch.uint8)],
        return_tensors="pt",
    )
    model(**inputs).logits.logsumexp(-1).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_weights_come_in_the_asked_precision(folder: Path):
    model = load_policy(folder, dtype=torch.bfloat16, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_loading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]):
    load(folder)
    load_processor(folder)
    assert capfd.readouterr() == ("", "")


def test_config_and_processor_ban_the_same_vision_tokens(folder: Path):
    assert vision_token_ids(small_config("moe")) == [259, 260, 261, 262]
    assert vision_token_ids(small_processor()) == [259, 260, 261, 262]
    assert vision_token_ids(load(folder).config) == vision_token_ids(load_processor(folder))


@pytest.mark.parametrize("function", [load, load_processor])
@pytest.mark.parametrize("name", ["/no/such/folder", "./policy", "runs/a/step_1"])
def test_missing_folder_is_named_with_the_remedy(function, name: str):
    with pytest.raises(ValueError, match="does not exist; pass a folder with config.json or a hub name$") as error:
        function(name)
    assert f"model folder '{Path(name)}'" in str(error.value)


@pytest.mark.parametrize("function", [load, load_processor])
def test_folder_without_config_is_named(function, tmp_path: Path):
    with pytest.raises(ValueError, match=f"^model folder '{tmp_path}' has no config.json; pass a folder with"):
        function(tmp_path)


@pytest.mark.parametrize("function", [load, load_processor])
def test_hub_name_that_cannot_be_had_is_named(function, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'nobody/no-such-model'"):
        function("nobody/no-such-model")


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl", "a_family_of_next_year"])
def test_other_families_are_refused_with_the_supported_ones(folder: Path, family: str):
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ValueError, match=f"is of family '{family}'; supported families: qwen3_vl, qwen3_vl_moe$"):
        load(folder)


def test_broken_config_is_one_sentence(folder: Path):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json.*is not a valid JSON file"):
        load(folder)


def test_folder_without_processor_says_what_to_add(folder: Path):
    (folder / "processor_config.json").unlink()
    with pytest.raises(
        ValueError, match=f"model '{folder}' has no usable processor .*put the tokenizer and processor files"
    ):
        load_processor(folder)


def test_folder_without_weights_is_named(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"weights of model '{folder}' cannot be read: .*model.safetensors"):
        load(folder)


def test_truncated_weights_are_named(folder: Path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(ValueError, match=f"weights of model '{folder}' cannot be read"):
        load(folder)


NORM = "model.language_model.norm.weight"


@pytest.mark.parametrize("norm", [None, torch.ones(7)], ids=["missing", "of another shape"])
def test_weight_that_does_not_fit_is_an_error_and_not_random_numbers(folder: Path, norm: torch.Tensor | None):
    weights = load_file(folder / "model.safetensors") | {NORM: norm}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"lacks 1 weights that its config.json requires, the first is {NORM}"):
        load(folder)


@pytest.mark.parametrize("intermediate", [128, 256])
def test_square_experts_are_refused_since_their_orientation_is_lost(tmp_path: Path, intermediate: int):
    save_small_policy(tmp_path, kind="moe", seed=0, hidden_size=256, moe_intermediate_size=intermediate)
    with pytest.raises(
        ValueError, match=rf"square expert matrices \(hidden_size 256, moe_intermediate_size {intermediate}\)"
    ):
        load(tmp_path)
