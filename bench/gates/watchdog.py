"""Fits the watchdog's bounds on half of the grid's runs, and tests them on the other half.

    python -m bench.gates.watchdog

A bound lies beyond all that healthy runs of the first half have shown, by a margin. The margin and the number of signs that make an
alarm are those that announce most collapses of that half without a false alarm there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.gates.results import read_results
from bench.gates.run import METRICS
from bench.gates.tables import has_collapsed, scores
from rl.watchdog import SIGNS, SIGNS_NEEDED, WINDOW, Sign, Watchdog

COLUMNS = {"reward/mean": "reward", "rollout/response_tokens": "tokens"} | {
    f"policy/{name}": column for name, column in METRICS.items()
}
"""Metric → column of a result."""
MARGINS = (1.0, 1.1, 1.25, 1.5, 2.0)

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the watchdog made of some runs."""

    collapses: int
    announced: int
    """Collapses with an alarm before the held-out score had halved."""
    leads: Sequence[int]
    """Steps from the alarm to the halved score, of each announced collapse."""
    healthy: int
    false_alarms: int
    """Healthy runs with an alarm."""


def rows_of(result: Result) -> Iterator[dict[str, float]]:
    """Yields the metrics of each step."""
    curves = {name: result["curves"][column] for name, column in COLUMNS.items() if column in result["curves"]}
    for index in range(len(result["curves"]["reward"])):
        yield {name: curve[index] for name, curve in curves.items() if curve[index] is not None}


def halved_at(result: Result) -> int | None:
    """Returns the step of the held-out measurement at which the score was first below half of its best; None if never."""
    values = scores(result)
    below = np.flatnonzero(values < np.maximum.accumulate(values) / 2)
    if not len(below):
        return None
    window = len(result["held_out"]) - len(values)
    return int(result["held_out"][int(below[0]) + window][0])


def alarm_at(result: Result, signs: Sequence[Sign], needed: int) -> int | None:
    """Returns the step of the first alarm."""
    dog = Watchdog(signs=signs, needed=needed)
    alarms = (dog.watch(step, row) for step, row in enumerate(rows_of(result), start=1))
    return next((alarm.step for alarm in alarms if alarm), None)


def outcome(results: Sequence[Result], signs: Sequence[Sign], needed: int) -> Outcome:
    """Runs the watchdog over some runs. A run counts as healthy if its score never fell below three quarters of its best."""
    leads, collapses, healthy, false_alarms = [], 0, 0, 0
    for result in results:
        alarm, halved = alarm_at(result, signs, needed), halved_at(result)
        if halved is not None:
            collapses += 1
            leads += [halved - alarm] if alarm is not None and alarm <= halved else []
        elif is_healthy(result):
            healthy += 1
            false_alarms += alarm is not None
    return Outcome(collapses=collapses, announced=len(leads), leads=leads, healthy=healthy, false_alarms=false_alarms)


def is_healthy(result: Result) -> bool:
    """Returns True if the score never fell below three quarters of its best."""
    values = scores(result)
    return not has_collapsed(result) and bool((values >= 0.75 * np.maximum.accumulate(values)).all())


def in_first_half(result: Result) -> bool:
    """Returns True for the half that bounds are fitted on, by a hash of the run's name."""
    return hashlib.blake2b(result["key"].encode(), digest_size=1).digest()[0] % 2 == 0


def bounds_beyond(results: Sequence[Result], signs: Sequence[Sign], margin: float) -> list[Sign]:
    """Returns the signs with bounds that no healthy run reaches, by a factor."""
    fitted = []
    for sign in signs:
        shown = [value for result in results if is_healthy(result) for value in _values(result, sign)]
        upwards = sign.kind in ("above", "rise")
        extreme = (max if upwards else min)(shown, default=sign.bound)
        fitted.append(replace(sign, bound=extreme * margin if upwards else extreme / margin))
    return fitted


def _values(result: Result, sign: Sign) -> Iterator[float]:
    """Yields what the sign compares with its bound, step by step."""
    values = [row[sign.metric] for row in rows_of(result) if sign.metric in row]
    means = list(np.convolve(values, np.ones(WINDOW) / WINDOW, mode="valid")) if len(values) >= WINDOW else []
    for count in range(1, len(means) + 1):
        if (value := sign.value(means[:count])) is not None:
            yield float(value)


def fit(results: Sequence[Result]) -> tuple[list[Sign], int]:
    """Returns the signs and the number of them that announce most collapses without a false alarm, with the longest lead."""
    best: tuple[tuple[int, float], list[Sign], int] | None = None
    for margin, needed in product(MARGINS, (1, 2)):
        signs = bounds_beyond(results, SIGNS, margin)
        found = outcome(results, signs, needed)
        quality = (found.announced, float(np.mean(found.leads)) if found.leads else 0.0)
        if not found.false_alarms and (best is None or quality > best[0]):
            best = (quality, signs, needed)
    assert best is not None, "a bound beyond all healthy runs has no false alarm"
    return best[1], best[2]


def main() -> None:
    """Prints the fitted bounds, and what they and the present ones announce in both halves."""
    results, console = read_results(), Console(width=140)
    halves = {
        "first half (fitted)": [result for result in results if in_first_half(result)],
        "second half": [result for result in results if not in_first_half(result)],
    }
    signs, needed = fit(halves["first half (fitted)"])
    bounds = Table("metric", "kind", "bound now", "fitted bound")
    for now, fitted in zip(SIGNS, signs, strict=True):
        bounds.add_row(now.metric, now.kind, f"{now.bound:.3g}", f"{fitted.bound:.3g}")
    console.print(bounds, f"signs needed: {SIGNS_NEEDED} now, {needed} fitted")
    table = Table("runs", "bounds", "collapses", "announced", "median lead", "leads", "healthy", "false alarms")
    for name, half in halves.items():
        for which, its, count in (("fitted", signs, needed), ("now", SIGNS, SIGNS_NEEDED)):
            found = outcome(half, its, count)
            lead = f"{np.median(found.leads):.0f}" if found.leads else ""
            numbers = (found.collapses, found.announced, lead, sorted(found.leads), found.healthy, found.false_alarms)
            table.add_row(name, which, *map(str, numbers))
    console.print(table)


if __name__ == "__main__":
    main()
