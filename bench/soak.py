"""Measures the growth of each process of a long run.

    python -m bench.soak

The smallest run, sampled once a second. After the warm-up a line is fitted to the resident memory of each process, to its open
handles, and to the shared memory of the machine. It exits with status 1 if a process grows by more than a MB in 100 steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import tyro
from rich.console import Console
from rich.table import Table

from bench.runs import recipe_command
from rl.run_dir.tracker import read_metrics

RUN = """
--prompts-per-step 4 --group-size 4 --eval.num-prompts 8 --learner.threads 1 --cold-start.threads 1 --cold-start.updates 4
--checkpoint-every 50 --keep-checkpoints 2
"""
MB = 2**20
LIMIT_MB = 1.0
"""Growth per 100 steps that counts as a leak, in MB."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    steps: int = 1000
    """Steps of the run."""
    warm_up: int = 500
    """Steps that do not count: until then heaps fill their gaps, and oneDNN its cache."""
    folder: Path = Path("runs/soak")
    """Folder of the run."""
    more: str = ""
    """Additional options of the run."""
    output: Path = Path("bench/results/soak.json")
    """File of the figures."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A line through the samples of one process."""

    name: str
    mean_mb: float
    """Mean resident memory, in MB."""
    mb_per_100: float
    """Growth in 100 steps, in MB."""
    handles_per_100: float
    """More open handles in 100 steps."""


Samples = Mapping[str, Sequence[tuple[int, int, int]]]
"""Process → (step, resident bytes, handles) of each sample."""


def main(options: Options) -> None:
    """Runs, samples, prints a table, and writes JSON."""
    run_dir = options.folder / time.strftime("%m%d_%H%M%S")
    samples, shared = watch(run_dir, recipe_command(run_dir, options.steps, f"{RUN} {options.more}"))
    growths = [growth for name, rows in samples.items() if (growth := growth_of(name, rows, options.warm_up))]
    table = Table("process", "mean, MB", "growth in 100 steps, MB", "handles in 100 steps")
    for growth in sorted(growths, key=lambda growth: -growth.mb_per_100):
        table.add_row(
            growth.name, f"{growth.mean_mb:.0f}", f"{growth.mb_per_100:+.2f}", f"{growth.handles_per_100:+.2f}"
        )
    leaks = [growth.name for growth in growths if growth.mb_per_100 > LIMIT_MB or growth.handles_per_100 > 1]
    shared_growth = slope(shared, options.warm_up) * 100 / MB
    summary = f"shared memory {shared_growth:+.2f} MB in 100 steps; grows: {', '.join(leaks) or 'nothing'}"
    Console(width=120).print(table, summary, highlight=False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "steps": options.steps,
        "growth": [vars(growth) for growth in growths],
        "shared_mb_per_100": shared_growth,
    }
    options.output.write_text(json.dumps(result, indent=1))
    sys.exit(bool(leaks) or shared_growth > LIMIT_MB)


def watch(run_dir: Path, command: Sequence[str]) -> tuple[Samples, list[tuple[int, int]]]:
    """Runs a command. Returns the samples of its processes, and (step, bytes) of shared memory."""
    samples: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    shared: list[tuple[int, int]] = []
    run = subprocess.Popen(command)
    while run.poll() is None:
        time.sleep(1.0)
        rows = read_metrics(run_dir)
        step = int(rows[-1]["step"]) if rows else 0
        with suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    # Ray adds the method that an actor runs to its name.
                    name = f"{process.name().partition('.')[0]} {process.pid}"
                    samples[name].append((step, process.memory_info().rss, process.num_fds()))
        files = [path.stat().st_size for path in Path("/dev/shm").iterdir() if path.is_file()]
        shared.append((step, sum(files)))
    if run.returncode:
        raise RuntimeError(f"the run has ended with status {run.returncode}")
    return samples, shared


def growth_of(name: str, rows: Sequence[tuple[int, int, int]], warm_up: int) -> Growth | None:
    """Returns the growth of a process after the warm-up; None if it did not live so long."""
    steps = [step for step, _, _ in rows]
    if not rows or steps[0] > warm_up or steps[-1] < 2 * warm_up:
        return None
    return Growth(
        name=name,
        mean_mb=float(np.mean([resident for step, resident, _ in rows if step > warm_up])) / MB,
        mb_per_100=slope([(step, resident) for step, resident, _ in rows], warm_up) * 100 / MB,
        handles_per_100=slope([(step, handles) for step, _, handles in rows], warm_up) * 100,
    )


def slope(rows: Sequence[tuple[int, int]], warm_up: int) -> float:
    """Returns the growth in one step, by least squares over the rows after the warm-up; 0 with fewer than two steps."""
    after = np.array([row for row in rows if row[0] > warm_up], dtype=float)
    if len(after) < 2 or np.ptp(after[:, 0]) == 0:
        return 0.0
    return float(np.polyfit(after[:, 0], after[:, 1], 1)[0])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
