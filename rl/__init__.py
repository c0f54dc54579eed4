"""RL post-training: the loop, the objectives, the learner."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rl.config import TrainConfig

if TYPE_CHECKING:
    from rl.loop import train
    from rl.types import RunResult

# Engines and learner share cores: a spinning thread would block its neighbour. OpenMP reads this once, when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["RunResult", "TrainConfig", "train"]


def __getattr__(name: str) -> Any:
    """Imports the loop, and with it Ray, on first use: learner and objectives work without Ray."""
    if name in ("RunResult", "train"):
        from rl import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'rl' has no attribute {name!r}")
