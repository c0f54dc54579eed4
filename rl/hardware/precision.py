"""Precision of learner and engines if it is `auto`: bfloat16 on GPUs and on processors that multiply in it, else float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from rl.config import LearnerConfig
from rl.hardware.placement import DerivedOption
from rollout.config import RolloutConfig

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "Arm's BF16"}
"""Processor flags of the instructions that multiply in bfloat16, the fastest first."""


def derive_dtypes(learner: LearnerConfig, rollout: RolloutConfig) -> list[DerivedOption]:
    """Returns the precisions of a run that are `auto`.

    If both are, learner and engines get the same: else their log-probabilities would differ by more than they need to.

    Args:
        learner: The learner's options.
        rollout: The engines' options, with the placement resolved in both.
    """
    on_gpus = bool(learner.gpus and rollout.gpus_per_engine)
    return learner_dtype(learner, on_gpus=on_gpus) + engine_dtype(rollout, on_gpus=on_gpus)


def learner_dtype(learner: LearnerConfig, *, on_gpus: bool) -> list[DerivedOption]:
    """Returns the precision of a learner; nothing if it is set."""
    return [_option("learner.dtype", on_gpus)] if learner.dtype == "auto" else []


def engine_dtype(rollout: RolloutConfig, *, on_gpus: bool) -> list[DerivedOption]:
    """Returns the precision of engines; nothing if it is set."""
    return [_option("rollout.dtype", on_gpus)] if rollout.dtype == "auto" else []


@cache
def bfloat16_instructions() -> str | None:
    """Returns the name of this processor's instructions that multiply in bfloat16; None if it has none."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    words = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return next((name for flag, name in INSTRUCTIONS.items() if flag in words), None)


def _option(name: str, on_gpus: bool) -> DerivedOption:
    instructions = "GPUs" if on_gpus else bfloat16_instructions()
    if instructions is None:
        return DerivedOption(name=name, value="float32", why="this processor does not multiply in bfloat16")
    return DerivedOption(name=name, value="bfloat16", why=f"{instructions} multiply in it")
