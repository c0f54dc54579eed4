"""Tables of the grid: held-out scores with intervals, collapses, and what ratios, gates and entropies were.

A run has collapsed if its last held-out score is below half of its best. Both are means of three measurements in a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from bench.gates.cells import OBJECTIVES, STEPS, UPDATES

SMOOTHED = 3
"""Held-out measurements in a row whose mean is a score."""
BASELINES = ("grpo", "gspo", "gspo wide", "cispo")
"""Objectives whose best a combination is compared with."""

Results = Sequence[Mapping[str, Any]]


def scores(result: Mapping[str, Any]) -> np.ndarray:
    """Returns the running means of the held-out scores."""
    values = np.array([score for _, score in result["held_out"]])
    return np.convolve(values, np.ones(SMOOTHED) / SMOOTHED, mode="valid")


def final(result: Mapping[str, Any]) -> float:
    """Returns the last score."""
    return float(scores(result)[-1])


def has_collapsed(result: Mapping[str, Any]) -> bool:
    """Returns True if the last score is below half of the best."""
    return final(result) < scores(result).max() / 2


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of the seeds and half the width of its 95 % interval (Student's t); 0 for one seed."""
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(spread * stats.t.ppf(0.975, max(1, len(values) - 1)))


def cells_of(results: Results) -> dict[tuple[str, str], dict[tuple[str, int], list[Mapping[str, Any]]]]:
    """Returns the results of each (task, kind) and, within it, of each (objective, N), of runs of full length."""
    found: dict[tuple[str, str], dict[tuple[str, int], list[Mapping[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for result in results:
        if result["steps"] == STEPS:
            found[result["task"], result["kind"]][result["objective"], result["updates"]].append(result)
    return found


def never_worse(cells: Mapping[tuple[str, int], Results]) -> dict[str, list[int]]:
    """Returns for each objective the N at which its mean is below the interval of the best of `BASELINES`."""
    below: dict[str, list[int]] = defaultdict(list)
    for n in UPDATES:
        rivals = [interval([final(r) for r in cells[name, n]]) for name in BASELINES if cells.get((name, n))]
        if not rivals:
            continue
        mean, half = max(rivals)
        for name in OBJECTIVES:
            if runs := cells.get((name, n)):
                below[name] += [n] if interval([final(r) for r in runs])[0] < mean - half else []
    return below


def print_tables(results: Results) -> None:
    """Prints one table of scores and one of statistics for each task and kind."""
    console = Console(width=180)
    for (task, kind), cells in cells_of(results).items():
        below = never_worse(cells)
        table = Table(
            "objective", *(f"N = {n}" for n in UPDATES), "below the best baseline at N", title=f"{task}, {kind}"
        )
        for name in OBJECTIVES:
            texts = [_text(cells.get((name, n), [])) for n in UPDATES]
            if any(texts):
                table.add_row(name, *texts, ", ".join(map(str, below[name])))
        console.print(table)
        console.print(_statistics(cells, title=f"{task}, {kind}: extremes of a run, means over seeds"))


def _text(runs: Results) -> str:
    if not runs:
        return ""
    mean, half = interval([final(run) for run in runs])
    collapsed = sum(map(has_collapsed, runs))
    return f"{mean:.3f} ±{half:.3f}" + (f" ({collapsed}/{len(runs)} †)" if collapsed else f" ({len(runs)})")


def _statistics(cells: Mapping[tuple[str, int], Results], title: str) -> Table:
    names = ("gate, last update", "ω < 1/2, A < 0", "sample size", "ratio 1 %", "ratio 99 %", "entropy", "routing")
    table = Table("objective", "N", *names, title=title)
    for (name, n), runs in sorted(cells.items(), key=lambda item: (item[0][1], list(OBJECTIVES).index(item[0][0]))):
        least = [_extreme(runs, key, np.min) for key in ("gate_last", "ess", "r01", "entropy", "routing")]
        most = [_extreme(runs, key, np.max) for key in ("neg_half", "r99")]
        table.add_row(name, str(n), least[0], most[0], least[1], least[2], most[1], least[3], least[4])
    return table


def _extreme(runs: Results, key: str, of: Any) -> str:
    values = [of([v for v in run["curves"][key] if v is not None]) for run in runs if key in run["curves"]]
    return f"{np.mean(values):.3g}" if values else ""
