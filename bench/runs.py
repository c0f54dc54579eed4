"""Runs of a recipe for measurements; each is made once and kept."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from rl.run_dir.tracker import read_metrics


def recipe_command(run_dir: Path, steps: int, options: str) -> list[str]:
    """Returns the main job's command line.

    Args:
        run_dir: The run's folder.
        steps: The run's steps.
        options: Additional options, as on a command line.
    """
    where = f"--run-dir {run_dir} --steps {steps} --wandb disabled"
    return [sys.executable, "-m", "recipes.digit_sums", *where.split(), *options.split()]


def recipe_run(run_dir: Path, steps: int, options: str) -> Path:
    """Runs the main job unless its folder has that many steps already, and returns the folder."""
    if not (run_dir / "checkpoints" / f"step_{steps}").is_dir():
        subprocess.run(recipe_command(run_dir, steps, options), check=True)
    return run_dir


def step_rows(run_dir: Path) -> list[dict[str, float]]:
    """Returns one row of metrics per step, without the evaluation before the first step."""
    return [row for row in read_metrics(run_dir) if row["step"] > 0]


def means(rows: Iterable[dict[str, float]], names: Iterable[str]) -> dict[str, float]:
    """Returns the mean of each metric over rows."""
    rows = list(rows)
    return {name: statistics.mean(row[name] for row in rows) for name in names}
