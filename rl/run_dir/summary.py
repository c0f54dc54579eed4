"""The result of a run: read from its folder, printed on the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rl.run_dir.tracker import read_metrics
from rl.types import RunResult

PHASES = ("generate", "score", "learn", "sync")


def read_result(run_dir: Path, checkpoint: Path | None) -> RunResult:
    """Reads the first and the last evaluation of a finished run."""
    assert checkpoint is not None, "a finished run has a checkpoint"
    rows = [row for row in read_metrics(run_dir) if "eval/greedy" in row]
    scores = [{name: value for name, value in row.items() if name.startswith("eval/")} for row in rows]
    before, after = (scores[0], scores[-1]) if scores else ({}, {})
    return RunResult(run_dir=run_dir, checkpoint=checkpoint, before=before, after=after)


def print_result(result: RunResult) -> None:
    """Prints held-out scores before and after, seconds per step by phase, and the checkpoint's path."""
    console = Console()
    scores = Table("held-out reward", "before", "after", "change", title="result")
    tasks = [name.split("/")[1] for name in result.after if name.endswith("/avg")]
    task_rows = [(f"{task}/avg", f"{task}: correct, sampled") for task in (tasks if len(tasks) > 1 else [])]
    for name, label in (
        ("greedy", "greedy"),
        ("sampled", "sampled"),
        *task_rows,
        ("blind", "blind control (grey image)"),
    ):
        before, after = result.before.get(f"eval/{name}"), result.after.get(f"eval/{name}")
        if before is not None and after is not None:
            scores.add_row(label, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    if scores.row_count:
        console.print(scores)
    steps = [row for row in read_metrics(result.run_dir) if "time/step" in row]
    if steps:
        seconds = {phase: float(np.median([row[f"time/{phase}"] for row in steps])) for phase in (*PHASES, "step")}
        split = ", ".join(f"{phase} {seconds[phase]:.2f}" for phase in PHASES)
        console.print(f"{seconds['step']:.2f} s per step (median): {split}", highlight=False)
    console.print(f"checkpoint: {result.checkpoint}", highlight=False)
