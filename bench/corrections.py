"""Compares mismatch corrections on a MoE policy in bfloat16, where engine and learner differ by rounding.

    python -m bench.corrections --steps 100 --seeds 0 1

Every run starts from the same cold start. The table has means over seeds: the reward and the mismatch of engine and learner in the
last quarter of the steps, and the last evaluation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from bench.runs import means, recipe_run, step_rows

CORRECTIONS = {
    "off": "",
    "token cap 2": "--correction.token-cap 2",
    "token band 0.5 2": "--correction.token-band 0.5 2.0",
    "sequence band 0.9 1.1": "--correction.sequence-band 0.9 1.1",
    "cap 2, sequence band 0.9 1.1": "--correction.token-cap 2 --correction.sequence-band 0.9 1.1",
}
COLUMNS = {
    "reward/mean": "reward",
    "rollout/logprob_gap_mean": "mean |Δ log p|",
    "rollout/mismatch_ess": "sample size",
    "rollout/mismatch_capped": "capped",
    "rollout/mismatch_masked": "dropped",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    steps: int = 100
    """Steps of each run."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each makes one run of every correction."""
    folder: Path = Path("runs/corrections")
    """Folder of the runs; existing runs are not repeated."""
    output: Path = Path("bench/results/corrections.json")
    """File of the figures."""
    recipe_options: str = "--learner.threads 2"
    """Additional options of every run."""


def main(options: Options) -> None:
    """Makes the runs, prints a table, and writes JSON."""
    table = Table(title=f"{options.steps} steps, seeds {options.seeds}")
    for column in ("correction", *COLUMNS.values(), "greedy", "sampled"):
        table.add_column(column, justify="left" if column == "correction" else "right")
    results = {}
    for name, chosen in CORRECTIONS.items():
        runs = [summary(run(options, name, chosen, seed)) for seed in options.seeds]
        results[name] = means(runs, runs[0])
        table.add_row(name, *(f"{value:.3f}" if value > 0.01 else f"{value:.1e}" for value in results[name].values()))
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1))


def run(options: Options, name: str, chosen: str, seed: int) -> Path:
    """Runs the recipe once, and returns the run's folder."""
    policy = "--cold-start.kind moe --rollout.dtype bfloat16 --learner.dtype bfloat16"
    words = f"{policy} --seed {seed} {options.recipe_options} {chosen}"
    return recipe_run(options.folder / f"{name.replace(' ', '_')}-{seed}", options.steps, words)


def summary(run_dir: Path) -> dict[str, float]:
    """Returns the columns' means over the last quarter of the steps, and the last evaluation."""
    rows = step_rows(run_dir)
    found = means(rows[-len(rows) // 4 :], COLUMNS)
    return found | {name: rows[-1][f"eval/{name}"] for name in ("greedy", "sampled")}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
