"""Checkpoints of a policy with one weight, written as a learner's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from policies.weight_files import TensorFile
from rl.config import RunOptions, config_dict
from rl.run_dir.checkpoint import LoopState
from rl.run_dir.checkpoint_writer import CheckpointWriter
from rl.run_dir.parts import write_in_background, write_part


class OneWeight:
    """A learner whose policy is one weight, on some ranks. `before` is called with the folder before a rank writes."""

    def __init__(self, num_ranks: int = 1, before: Callable[[Path], object] = lambda folder: None) -> None:
        self.num_ranks, self.before, self.weight = num_ranks, before, torch.zeros(1)

    def check(self) -> None:
        """No rank has died."""

    def save(self, folder: Path, *, background: bool = False) -> None:
        for rank in range(self.num_ranks):
            name = f"model-{rank}.safetensors"
            files = [TensorFile(name=name, tensors={"weight": self.weight.clone()})]
            write = write_in_background if background else write_part
            write(folder, rank, None if rank else self._describe, files)

    def _describe(self, folder: Path) -> None:
        self.before(folder)
        (folder / "config.json").write_text("{}")


def state_of(options: RunOptions, step: int, metrics: Mapping[str, float] = {}) -> LoopState:
    cursor = {"epoch": 0, "position": 16 * step, "postponed": [3]}
    seconds, config = 1.5 * step, config_dict(options)
    return LoopState(
        step=step, policy_version=step, cursor=cursor, seconds=seconds, config=config, metrics=dict(metrics)
    )


def write_checkpoints(
    options: RunOptions, *steps: int, in_use: Path | None = None, learner: OneWeight | None = None
) -> Path:
    """Writes a checkpoint of each step and returns the last one's folder."""
    writer = CheckpointWriter(options, learner or OneWeight(), in_use)
    for step in steps:
        writer.begin(state_of(options, step))
    return writer.finish()
