"""The loop and the mathematics of learning."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rl.config import TrainConfig

if TYPE_CHECKING:
    from rl.loop import RunResult, train

# Engines and learner share cores: a thread that spins while it waits would take the core that its neighbour needs. OpenMP
# reads this once, when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["RunResult", "TrainConfig", "train"]


def __getattr__(name: str) -> Any:
    """Loads the loop, and with it Ray, when it is first asked for: learner and objectives work without."""
    if name in ("RunResult", "train"):
        from rl import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'rl' has no attribute {name!r}")
