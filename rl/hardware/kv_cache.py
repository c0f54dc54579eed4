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

    Raises:
        ValueError: The size that is set has no room for one completion.
    """
    rollout = config.rollout
    shape = None if rollout.gpus_per_engine else known_shape(config.model)
    if shape is None:
        return []
    token_bytes = shape.kv_token_bytes * (2 if rollout.dtype == "float32" else 1)

    def gib_of(num_completions: int) -> float:
        # One block more: vLLM keeps the first one for padding.
        num_blocks = 1 + num_completions * math.ceil(rollout.max_model_len / CPU_BLOCK)
        return math.ceil(1000 * num_blocks * CPU_BLOCK * token_bytes / 2**30) / 1000

    if rollout.kv_cache_gib is not None:
        if rollout.kv_cache_gib < gib_of(1):
            raise ValueError(
                f"rollout.kv_cache_gib = {rollout.kv_cache_gib:g} has no room for a completion of rollout.max_model_len = "
                f"{rollout.max_model_len}: raise it to {gib_of(1):g}, lower max_model_len, or leave it out"
            )
        return []
    num_completions = min(rollout.max_running, completions_at_once(config))
    gib = gib_of(num_completions)
    why = f"{num_completions} completions of {rollout.max_model_len} tokens" + (
        f" take {gib:g}" if gib > MOST_GIB else ""
    )
    return [DerivedOption(name="rollout.kv_cache_gib", value=max(gib_of(1), min(MOST_GIB, gib)), why=why)]


def completions_at_once(config: TrainConfig) -> int:
    """Returns the most completions that may run: those of the batches in progress, or of an evaluation."""
    of_batches = (1 + config.max_staleness) * (config.prompts_per_step + config.refill_prompts) * config.group_size
    return max(of_batches, config.eval.num_prompts * config.eval.num_samples)
