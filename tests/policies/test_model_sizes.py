"""Parameters counted from a config alone: as many as the model has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLMoeConfig

from policies.model_sizes import PUBLISHED, published_config, shape_of

PUBLISHED_COUNTS = {  # of the checkpoints, as their model cards and safetensors indices give them, in billions
    "2B": 2.13,
    "4B": 4.44,
    "8B": 8.77,
    "32B": 33.4,
    "30B-A3B": 31.1,
    "235B-A22B": 236.0,
}


def as_config(size: str) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    """A published config as transformers reads it."""
    return (Qwen3VLMoeConfig if PUBLISHED[size].experts else Qwen3VLConfig)(**published_config(size))


def num_parameters(config: Qwen3VLConfig | Qwen3VLMoeConfig) -> tuple[int, int]:
    """Of a model of this config, without its weights: all, and the vision tower's."""
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if ".visual." in name)


def test_a_small_policys_parameters_are_counted_from_its_config(policy: Path):
    shape = shape_of(json.loads((policy / "config.json").read_text()))
    assert (shape.parameters, shape.tower) == num_parameters(AutoConfig.from_pretrained(policy))
    assert bool(shape.experts) == ("moe" in policy.name)


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_published_shape_has_the_published_number_of_parameters(size: str):
    shape = PUBLISHED[size]
    assert shape.parameters / 1e9 == pytest.approx(PUBLISHED_COUNTS[size], rel=0.005)
    assert shape_of(published_config(size)) == shape


@pytest.mark.parametrize("size", ["2B", "30B-A3B"])
def test_a_published_shape_is_that_of_transformers_model(size: str):
    config = as_config(size)
    assert (PUBLISHED[size].parameters, PUBLISHED[size].tower) == num_parameters(config)
    assert shape_of(config.to_dict()) == PUBLISHED[size]


def test_a_token_in_the_cache_worked_by_hand():
    # 28 layers × keys and values × 8 heads × 128 × 2 bytes
    assert PUBLISHED["2B"].kv_token_bytes == 28 * 2 * 8 * 128 * 2


def test_another_familys_config_is_refused():
    with pytest.raises(ValueError, match="lacks 'text_config'"):
        shape_of({"hidden_size": 1})
