"""Measures how long a checkpoint stalls training: written at once, and by a thread from a copy in host memory.

    python -m bench.checkpoint --layers 8

Both write the same checkpoint of a policy and its AdamW state, by turns. A stall is the time until the learner may go on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from policies.small.qwen3_vl import save_small_policy
from rl.config import LearnerConfig, TrainConfig, config_dict
from rl.learner import Learner
from rl.run_dir.checkpoint import LoopState
from rl.run_dir.checkpoint_writer import CheckpointWriter

KINDS = {"at once": False, "by a thread": True}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    layers: int = 8
    """Layers of the policy; 8 make 0.5 GB in float32."""
    hidden: int = 1024
    """Hidden size."""
    rounds: int = 8
    """Checkpoints of each kind. The first takes the memory for the copies, and does not count in the medians."""
    folder: Path | None = None
    """Where the checkpoints go; a temporary folder by default."""
    output: Path = Path("bench/results/checkpoint.json")
    """File of the figures."""


def main(options: Options) -> None:
    """Measures, prints a table, and writes JSON."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        stalls, totals, num_bytes = measure(options, Path(name))
    medians = {kind: float(np.median(seconds[1:])) for kind, seconds in stalls.items()}
    ratio = medians["by a thread"] / medians["at once"]
    table = Table(
        "written",
        "first stall, s",
        "later stalls, s",
        "until it is whole, s",
        title=f"a checkpoint of {num_bytes / 1e9:.2f} GB",
    )
    for kind in KINDS:
        table.add_row(kind, f"{stalls[kind][0]:.2f}", f"{medians[kind]:.2f}", f"{np.median(totals[kind]):.2f}")
    Console().print(table, f"stall: {ratio:.3f} of that at once", highlight=False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"bytes": num_bytes, "stall": stalls, "total": totals, "ratio": ratio}, indent=1)
    )


def measure(options: Options, folder: Path) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Returns the seconds of each stall, the seconds until each checkpoint was whole, and the bytes of one."""
    sizes = {
        "hidden_size": options.hidden,
        "intermediate_size": 4 * options.hidden,
        "num_hidden_layers": options.layers,
    }
    policy = save_small_policy(folder / "policy", kind="dense", seed=0, **sizes)
    config = TrainConfig(model=str(policy), run_dir=folder / "run", learner=LearnerConfig(dtype="float32"))
    learner = Learner(config, policy)
    stalls: dict[str, list[float]] = {kind: [] for kind in KINDS}
    totals: dict[str, list[float]] = {kind: [] for kind in KINDS}
    num_bytes = 0
    for number in range(options.rounds):
        for kind in list(KINDS)[:: 1 if number % 2 else -1]:
            writer = CheckpointWriter(replace(config, background_checkpoints=KINDS[kind]), learner, None)
            state = LoopState(step=1, policy_version=1, cursor={}, seconds=0.0, config=config_dict(config))
            started = time.perf_counter()
            writer.begin(state)
            stalls[kind].append(time.perf_counter() - started)
            checkpoint = writer.finish()
            totals[kind].append(time.perf_counter() - started)
            num_bytes = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
            shutil.rmtree(checkpoint)
    return stalls, totals, num_bytes


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
