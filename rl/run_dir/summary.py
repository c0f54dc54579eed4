"""What a run achieved, on the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from rl.loop import RunResult
from rl.run_dir.tracker import read_metrics

PHASES = ("generate", "score", "learn", "sync")


def print_result(result: RunResult) -> None:
    """Prints held-out scores before and after, seconds per step by phase, and where everything lies."""
    console = Console()
    scores = Table("held-out reward", "before", "after", "change", title="result")
    tasks = [name.split("/")[1] for name in result.after if name.endswith("/avg")]
    of_tasks = [(f"{task}/avg", f"{task}: correct, sampled") for task in (tasks if len(tasks) > 1 else [])]
    for name, label in (
        ("greedy", "greedy"),
        ("sampled", "sampled"),
        *of_tasks,
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
