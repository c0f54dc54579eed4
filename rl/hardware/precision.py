"""Precision of learner and engines if it is `auto`: bfloat16 on GPUs and on processors that multiply in it, else float32."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from rich.console import Console

from rl.config import LearnerConfig, TrainConfig
from rl.hardware.placement import DerivedOption, placement_table, with_options
from rollout.config import RolloutConfig

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "Arm's BF16"}
"""Processor flags of the instructions that multiply in bfloat16, the fastest first."""


def with_dtypes(config: TrainConfig, console: Console | None = None) -> TrainConfig:
    """Returns the config of a run with the precisions that are `auto`.

    Learner and engines get the same: else their log-probabilities would differ by more than they need to.

    Args:
        config: The run's config, with its placement resolved.
        console: Prints what is derived for CPUs; None prints nothing.
    """
    learner, rollout = config.learner, config.rollout
    on_gpus = bool(learner.gpus and rollout.gpus_per_engine)
    names = [name for name in ("learner", "rollout") if getattr(config, name).dtype == "auto"]
    options = [_option(f"{name}.dtype", on_gpus) for name in names]
    _print(options, console)
    return with_options(config, options)


def with_engine_dtype(rollout: RolloutConfig, console: Console | None = None) -> RolloutConfig:
    """Returns the options of engines without a learner, with their precision; prints it for CPUs."""
    if rollout.dtype != "auto":
        return rollout
    option = _option("rollout.dtype", rollout.gpus_per_engine > 0)
    _print([option], console)
    return replace(rollout, dtype=option.value)


def with_learner_dtype(learner: LearnerConfig, console: Console | None = None) -> LearnerConfig:
    """Returns the options of a learner without engines, with its precision; prints it for CPUs."""
    if learner.dtype != "auto":
        return learner
    option = _option("learner.dtype", learner.gpus > 0)
    _print([option], console)
    return replace(learner, dtype=option.value)


@cache
def bfloat16_instructions() -> str | None:
    """Returns the name of this processor's instructions that multiply in bfloat16; None if it has none."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    words = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return next((name for flag, name in INSTRUCTIONS.items() if flag in words), None)


def _option(name: str, on_gpus: bool) -> DerivedOption:
    instructions = bfloat16_instructions()
    if on_gpus:
        return DerivedOption(name=name, value="bfloat16", why="on GPUs")
    if instructions is None:
        return DerivedOption(name=name, value="float32", why="this processor does not multiply in bfloat16")
    return DerivedOption(name=name, value="bfloat16", why=f"this processor multiplies in it ({instructions})")


def _print(options: list[DerivedOption], console: Console | None) -> None:
    if console is not None and any(option.why != "on GPUs" for option in options):
        console.print(placement_table(options, title="Precision"))
