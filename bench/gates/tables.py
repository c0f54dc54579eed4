"""Tables of the grid: held-out scores with intervals, collapses, and what ratios, gates and entropies were.

A run has collapsed if its last held-out score is below half of its best. Both are means of three measurements in a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from bench.gates.cells import LEARNING_RATES, OBJECTIVES, STEPS, UPDATES

SMOOTHED = 3
"""Held-out measurements in a row whose mean is a score."""
BASELINES = ("grpo", "gspo", "gspo wide", "cispo")
"""Objectives whose best a combination is compared with."""

LEAST_SEEDS = 3
"""Runs of a baseline whose interval says anything."""

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
    """Returns the results of each (task, kind) and, within it, of each (objective, N)."""
    found: dict[tuple[str, str], dict[tuple[str, int], list[Mapping[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for result in filter(is_of_grid, results):
        found[result["task"], result["kind"]][result["objective"], result["updates"]].append(result)
    return found


def is_of_grid(result: Mapping[str, Any]) -> bool:
    """Returns True for a run of full length at the grid's learning rate; others were made to choose that rate."""
    task = result["task"]
    return result["steps"] == STEPS[task] and result["learning_rate"] == LEARNING_RATES[task]


def never_worse(cells: Mapping[tuple[str, int], Results]) -> dict[str, list[int]]:
    """Returns for each objective the N at which its mean is below the interval of the best of `BASELINES`.

    Where no baseline has `LEAST_SEEDS` runs, nothing is compared. Objectives that are compared nowhere are left out.
    """
    below: dict[str, list[int]] = defaultdict(list)
    for n in UPDATES:
        known = [cells[name, n] for name in BASELINES if len(cells.get((name, n), [])) >= LEAST_SEEDS]
        rivals = [interval([final(run) for run in runs]) for runs in known]
        if not rivals:
            continue
        mean, half = max(rivals)
        for name in OBJECTIVES:
            if runs := cells.get((name, n)):
                below[name] += [n] if interval([final(r) for r in runs])[0] < mean - half else []
    return below


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def printed(self) -> Table:
        """Returns the table for a terminal."""
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Returns the table for a page."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"### {self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(results: Results) -> Iterator[Grid]:
    """Yields one table of scores and one of statistics for each task and kind."""
    for (task, kind), cells in cells_of(results).items():
        below, rows = never_worse(cells), []
        for name in OBJECTIVES:
            texts = [_text(cells.get((name, n), [])) for n in UPDATES]
            if any(texts):
                verdict = ", ".join(map(str, below[name])) or "never" if name in below else "too few seeds"
                rows.append([name, *texts, verdict])
        columns = ["objective", *(f"N = {n}" for n in UPDATES), "worse than the best baseline at N"]
        yield Grid(title=f"{task}, {kind}: held-out score", columns=columns, rows=rows)
        yield _statistics(cells, f"{task}, {kind}: extremes of a run")


def _text(runs: Results) -> str:
    if not runs:
        return ""
    mean, half = interval([final(run) for run in runs])
    collapsed = sum(map(has_collapsed, runs))
    wide = f" ±{half:.2f}" if len(runs) > 1 else ""
    return f"{mean:.2f}{wide} ({len(runs)}{f', {collapsed} †' if collapsed else ''})"


def _statistics(cells: Mapping[tuple[str, int], Results], title: str) -> Grid:
    lowest = {"gate, last update": "gate_last", "sample size": "ess", "ratio, 1 %": "r01", "entropy": "entropy"}
    highest = {"ratio, 99 %": "r99", "variance of log r": "var", "tokens": "tokens"}
    rows = []
    for (name, n), runs in sorted(cells.items(), key=lambda item: (item[0][1], list(OBJECTIVES).index(item[0][0]))):
        values = [_extreme(runs, key, np.min) for key in lowest.values()]
        values += [_extreme(runs, key, np.max) for key in highest.values()]
        rows.append([name, str(n), *values])
    columns = ["objective", "N", *(f"least {name}" for name in lowest), *(f"most {name}" for name in highest)]
    return Grid(title=title, columns=columns, rows=rows)


def _extreme(runs: Results, key: str, of: Any) -> str:
    """Returns the extreme of a curve, as a mean over runs; of running means over five steps."""
    curves = [[value for value in run["curves"][key] if value is not None] for run in runs if key in run["curves"]]
    values = [of(np.convolve(curve, np.ones(5) / 5, mode="valid")) for curve in curves]
    return f"{np.mean(values):.3g}" if values else ""
