"""Compares asynchronous generation, ahead of the learner, with taking turns: steps per minute, idle times, rewards.

    python -m bench.overlap --steps 100 --seeds 0 1

Both kinds of run start from the same cold start and alternate, seed by seed, so that a busy machine affects both. The learner
has one thread: on all cores it would leave none to the engines.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from bench.runs import means, recipe_run, step_rows

SHARES = {"time/learner_idle": "learner idle", "time/engine_idle": "engines idle", "rollout/staleness": "staleness"}
WARM_UP = 5
"""Steps without timing, in which engines compile and fill their caches."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    staleness: tuple[int, ...] = (0, 1)
    """Values of max_staleness to compare; the first is the baseline."""
    steps: int = 100
    """Steps of each run, more than 5."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each makes one run of every staleness."""
    folder: Path = Path("runs/overlap")
    """Folder of the runs; existing runs are not repeated."""
    output: Path = Path("bench/results/overlap.json")
    """File of the figures."""
    recipe_options: str = "--rollout.num-engines 2 --learner.threads 1"
    """Additional options of every run."""


def main(options: Options) -> None:
    """Makes the runs, prints a table, and writes JSON."""
    runs: dict[int, list[dict[str, float]]] = {staleness: [] for staleness in options.staleness}
    for seed in options.seeds:
        for staleness, summaries in runs.items():
            summaries.append(summary(run(options, staleness, seed)))
    results = {staleness: means(summaries, summaries[0]) for staleness, summaries in runs.items()}
    table = Table("max_staleness", "steps/min", "×", *SHARES.values(), "reward by quarters", "greedy", "sampled")
    for staleness, figures in results.items():
        ratio = statistics.mean(
            run["steps_per_minute"] / base["steps_per_minute"]
            for run, base in zip(runs[staleness], runs[options.staleness[0]], strict=True)
        )
        figures["ratio"] = ratio
        table.add_row(
            str(staleness),
            f"{figures['steps_per_minute']:.1f}",
            f"{ratio:.2f}",
            *(f"{figures[name]:.2f}" for name in SHARES),
            " ".join(f"{figures[f'reward_{quarter}']:.2f}" for quarter in range(1, 5)),
            *(f"{figures[f'eval/{name}']:.3f}" for name in ("greedy", "sampled")),
        )
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"mean": results, "runs": runs}, indent=1))


def run(options: Options, staleness: int, seed: int) -> Path:
    """Runs the recipe once, and returns the run's folder."""
    chosen = f"--max-staleness {staleness} --seed {seed} {options.recipe_options}"
    return recipe_run(options.folder / f"staleness_{staleness}-{seed}", options.steps, chosen)


def summary(run_dir: Path) -> dict[str, float]:
    """Returns steps per minute and shares after the warm-up, the mean reward of each quarter, and the last evaluation."""
    rows = step_rows(run_dir)
    timed, quarter = rows[WARM_UP:], len(rows) / 4
    seconds = rows[-1]["time/elapsed"] - rows[WARM_UP - 1]["time/elapsed"]
    rewards = {
        f"reward_{q + 1}": statistics.mean(
            row["reward/mean"] for row in rows[round(q * quarter) : round((q + 1) * quarter)]
        )
        for q in range(4)
    }
    held_out = {f"eval/{name}": rows[-1][f"eval/{name}"] for name in ("greedy", "sampled")}
    return {"steps_per_minute": 60 * len(timed) / seconds, **means(timed, SHARES), **rewards, **held_out}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
