"""Draws the learning curve of one or several runs: a picture, a table, and the same numbers as JSON.

    python -m bench.learning_curve runs/digit_sums_seed0 runs/digit_sums_seed1 --output docs/learning_curve.png

Pass runs of one recipe with different seeds: each is a thin line, their mean a thick one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from rl.run_dir.tracker import read_metrics

SERIES = (
    ("reward/mean", "training prompts, sampled", "tab:gray"),
    ("eval/greedy", "held out, greedy", "tab:blue"),
    ("eval/sampled", "held out, sampled", "tab:orange"),
    ("eval/blind", "held out, blind control (grey pictures)", "tab:red"),
)
SMOOTHED = "reward/mean"
"""Metric that is drawn as a running mean, since one step has few prompts."""
WINDOW = 10
"""Steps of the running mean."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the picture."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories; default: all runs/digit_sums* with metrics."""
    output: Path = Path("docs/learning_curve.png")
    """File of the picture."""
    table: Path = Path("bench/results/learning_curve.json")
    """File of the numbers."""


def main(options: Options) -> None:
    """Draws the picture, prints the table, and writes JSON."""
    runs = options.runs or tuple(sorted(path.parent for path in Path("runs").glob("digit_sums*/metrics.jsonl")))
    if not runs:
        print("there is no run to draw yet: `make quickstart` makes one")
        return
    if lacking := [str(run) for run in runs if not (run / "metrics.jsonl").is_file()]:
        sys.exit(f"no metrics.jsonl in {', '.join(lacking)}: pass run directories")
    curves = {run.name: {name: series(run, name) for name, *_ in SERIES} for run in runs}
    rows = {run.name: summary(run) for run in runs}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, options.output)
    print_table(rows)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(json.dumps(rows, indent=1))
    print(f"picture: {options.output}")


def series(run: Path, name: str) -> dict[int, float]:
    """Returns step → value of a metric."""
    found = {int(row["step"]): row[name] for row in read_metrics(run) if name in row}
    if name != SMOOTHED:
        return found
    values = list(found.values())
    return {step: float(np.mean(values[max(0, i + 1 - WINDOW) : i + 1])) for i, step in enumerate(found)}


def summary(run: Path) -> dict[str, float]:
    """Returns first and last held-out scores, the median seconds of a step, and the minutes of all steps."""
    scores: dict[str, float] = {}
    for name in ("greedy", "sampled", "blind"):
        if values := list(series(run, f"eval/{name}").values()):
            scores |= {f"{name}_before": values[0], f"{name}_after": values[-1]}
    seconds = list(series(run, "time/step").values()) or [0.0]
    return scores | {"steps": len(seconds), "step_seconds": float(np.median(seconds)), "minutes": sum(seconds) / 60}


def mean_curve(curves: list[dict[int, float]]) -> dict[int, float]:
    """Returns the mean over runs at the steps that all runs have."""
    shared = sorted(set.intersection(*map(set, curves)))
    return {step: float(np.mean([curve[step] for curve in curves])) for step in shared}


def draw(curves: dict[str, dict[str, dict[int, float]]], output: Path) -> None:
    """Writes the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, label, color in SERIES:
        runs = [curve[name] for curve in curves.values() if curve[name]]
        if not runs:
            continue
        style = {"color": color, "linestyle": ":" if name == "eval/blind" else "-"}
        for curve in runs if len(runs) > 1 else []:
            axes.plot(list(curve), list(curve.values()), linewidth=0.8, alpha=0.4, **style)
        mean = mean_curve(runs)
        marker = {} if name == SMOOTHED else {"marker": "o", "markersize": 4}
        axes.plot(list(mean), list(mean.values()), linewidth=2, label=label, **marker, **style)
    axes.set(xlabel="step", ylabel="reward", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", frameon=False)
    axes.set_title(", ".join(curves) if len(curves) < 2 else f"{len(curves)} runs: thin, one each; thick, their mean")
    figure.savefig(output, dpi=150)
    pyplot.close(figure)


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """Prints one line per run, and their mean."""
    table = Table(title="held-out reward, before → after", box=None, padding=(0, 2, 0, 0))
    for head in ("run", "greedy", "sampled", "blind", "steps", "s/step", "min"):
        table.add_column(head, no_wrap=True)
    if len(rows) > 1:
        shared = set.intersection(*map(set, rows.values()))
        rows = rows | {"mean": {name: float(np.mean([row[name] for row in rows.values()])) for name in shared}}
    for run, row in rows.items():
        scores = [
            f"{row[f'{name}_before']:.3f}→{row[f'{name}_after']:.3f}" if f"{name}_after" in row else ""
            for name in ("greedy", "sampled", "blind")
        ]
        table.add_row(run, *scores, f"{row['steps']:.0f}", f"{row['step_seconds']:.2f}", f"{row['minutes']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
