"""The key-value cache that is derived for engines on CPUs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.model_sizes import known_shape
from rl.config import EvalConfig, TrainConfig
from rl.hardware.kv_cache import completions_at_once, derive_kv_cache
from rl.hardware.placement import with_options
from rollout.config import RolloutConfig


def config(
    model: Path | str = "m",
    *,
    prompts: int = 4,
    group: int = 8,
    evaluated: int = 0,
    rollout: Any = None,
    **options: Any,
) -> TrainConfig:
    engines = {"dtype": "float32", "max_tokens": 16, "max_model_len": 128} | (rollout or {})
    return TrainConfig(
        model=str(model),
        prompts_per_step=prompts,
        group_size=group,
        eval=EvalConfig(num_prompts=evaluated),
        rollout=RolloutConfig(**engines),
        **options,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 4 * 8),
        ({"max_staleness": 2}, 3 * 4 * 8),  # two batches ahead of the learner's
        ({"refill_prompts": 3}, (4 + 3) * 8),
        ({"evaluated": 200}, 200),
        ({"evaluated": 20}, 4 * 8),
    ],
)
def test_completions_at_once_are_those_of_the_batches_or_of_an_evaluation(
    options: dict[str, int], expected: int
) -> None:
    assert completions_at_once(config(**options)) == expected


def test_the_cache_has_whole_blocks_for_every_completion(dense_policy: Path) -> None:
    text = json.loads((dense_policy / "config.json").read_text())["text_config"]
    # Keys and values of 4 bytes in each layer.
    token_bytes = 2 * 4 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]
    [option] = derive_kv_cache(config(dense_policy, rollout={"max_model_len": 100}))
    blocks = 32 * 4 + 1  # 100 tokens are four blocks of 32
    assert option.name == "rollout.kv_cache_gib"
    assert 0 <= option.value - blocks * 32 * token_bytes / 2**30 < 0.001
    assert "32 completions of 100 tokens" in option.why
    made = with_options(config(dense_policy), [option])
    assert made.rollout.kv_cache_bytes == round(option.value * 2**30)
    [half] = derive_kv_cache(config(dense_policy, rollout={"max_model_len": 100, "dtype": "bfloat16"}))
    assert half.value == pytest.approx(option.value / 2, abs=0.001)


def test_no_more_completions_count_than_an_engine_runs_and_the_cache_has_at_most_a_gib(dense_policy: Path) -> None:
    many = config(dense_policy, prompts=10_000, rollout={"max_running": 16})
    assert "16 completions" in derive_kv_cache(many)[0].why
    [option] = derive_kv_cache(replace(many, rollout=replace(many.rollout, max_running=256, max_model_len=8192)))
    shape = known_shape(str(dense_policy))
    assert shape is not None and (1 + 256 * 256) * 32 * 2 * shape.kv_token_bytes > 2**30
    assert option.value == 1.0 and " take " in option.why
    # One completion may take more.
    [option] = derive_kv_cache(replace(many, rollout=replace(many.rollout, max_model_len=2**20)))
    assert option.value >= 2**20 * 2 * shape.kv_token_bytes / 2**30 > 1.0


def test_a_cache_without_room_for_one_completion_is_refused_with_the_least_that_has(dense_policy: Path) -> None:
    least = derive_kv_cache(config(dense_policy, prompts=1, group=1))[0].value
    assert derive_kv_cache(config(dense_policy, rollout={"kv_cache_gib": least})) == []
    with pytest.raises(
        ValueError, match=rf"kv_cache_gib = 0.0001 has no room .*max_model_len = 128: raise it to {least:g}"
    ):
        derive_kv_cache(config(dense_policy, rollout={"kv_cache_gib": 0.0001}))


def test_nothing_is_derived_for_gpus_for_what_is_set_and_for_an_unknown_policy(
    dense_policy: Path, tmp_path: Path
) -> None:
    assert derive_kv_cache(config(dense_policy, rollout={"kv_cache_gib": 0.25})) == []
    assert derive_kv_cache(config(dense_policy, rollout={"gpus_per_engine": 1})) == []
    assert derive_kv_cache(config(tmp_path)) == []
    assert RolloutConfig().kv_cache_bytes == 2**30
    assert RolloutConfig(kv_cache_gib=0.25).kv_cache_bytes == 2**28
