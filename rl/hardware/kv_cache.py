"""Size of the key-value cache of engines on CPUs, which take all of it at their start."""

from __future__ import annotations

import math

from policies.model_sizes import known_shape
from rl.config import TrainConfig
from rl.hardware.placement import DerivedOption
from rollout.config import CPU_BLOCK

MOST_GIB = 1.0
"""A larger cache has to be asked for: completions that do not fit wait, or are computed again."""


def derive_kv_cache(config: TrainConfig) -> list[DerivedOption]:
    """Returns the size of the engines' cache; nothing if it is set, if engines are on GPUs, or if the policy cannot be read.

    Args:
        config: The run's config, with its precisions resolved.
    """
    rollout = config.rollout
    if rollout.gpus_per_engine or rollout.kv_cache_gib is not None:
        return []
    shape = known_shape(config.model)
    if shape is None:
        return []
    num_completions = min(rollout.max_running, completions_at_once(config))
    # One block more: vLLM keeps the first one for padding.
    num_blocks = 1 + num_completions * math.ceil(rollout.max_model_len / CPU_BLOCK)
    token_bytes = shape.kv_token_bytes * (2 if rollout.dtype == "float32" else 1)
    gib = num_blocks * CPU_BLOCK * token_bytes / 2**30
    if gib > MOST_GIB:
        why = f"{num_completions} completions of {rollout.max_model_len} tokens would take {gib:.1f}"
        return [DerivedOption(name="rollout.kv_cache_gib", value=MOST_GIB, why=why)]
    why = f"{num_completions} completions of {rollout.max_model_len} tokens"
    return [DerivedOption(name="rollout.kv_cache_gib", value=math.ceil(gib * 1000) / 1000, why=why)]


def completions_at_once(config: TrainConfig) -> int:
    """Returns the most completions that may run: those of the batches in progress, or of an evaluation."""
    of_batches = (1 + config.max_staleness) * (config.prompts_per_step + config.refill_prompts) * config.group_size
    return max(of_batches, config.eval.num_prompts * config.eval.num_samples)
