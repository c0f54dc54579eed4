"""Chooses the watchdog's signs and fits their bounds on half of the grid's runs, and tests them on the other half.

    python -m bench.gates.watchdog

A bound lies three standard deviations beyond what healthy runs have shown, of the logarithms of their extremes. If the most extreme
of them is farther away, it lies there. Of all candidates those are chosen, one after the other, that announce most collapses, with
the longest lead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.gates.results import read_results
from bench.gates.run import METRICS
from bench.gates.tables import has_collapsed, scores
from rl.watchdog import SIGNS, Sign, Watchdog

COLUMNS = {
    "reward/mean": "reward",
    "rollout/groups_without_variance": "equal",
} | {f"policy/{name}": column for name, column in METRICS.items()}
"""Metric → column of a result."""

DEVIATIONS = 3.0
"""Standard deviations between the mean of the healthy runs' extremes and a bound, on a logarithmic scale."""
RANDOM_HALVES = 40
SMALLEST = 1e-6
"""Extremes below this count as this: a logarithm needs them positive."""

# What a task's reward and entropy are, nobody knows beforehand: those are compared with themselves. Lengths are no candidates: here
# they stay the same, but responses that reason grow in healthy runs, too.
CANDIDATES = tuple(
    Sign(metric=metric, kind=kind, bound=0.0, text="", window=window)  # type: ignore[arg-type]
    for metric, kinds in {
        "reward/mean": "fall",
        "rollout/groups_without_variance": "above rise",
        "policy/entropy": "rise fall",
        "policy/grad_norm": "rise fall",
        "policy/log_ratio_variance": "above rise",
        "policy/ratio_p01": "below fall",
        "policy/ratio_p99": "above rise",
        "policy/ratio_max": "above rise",
        "policy/gate_mean": "below",
        "policy/effective_sample_size": "below",
        "policy/negative_below_half": "above",
    }.items()
    for kind in kinds.split()
    for window in (5, 10)
)

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the watchdog made of some runs."""

    collapses: int
    leads: Sequence[int]
    """Steps from the alarm to the halved score, of each collapse with an alarm before it."""
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


def is_healthy(result: Result) -> bool:
    """Returns True if the score never fell below three quarters of its best, and no measurement below half of the best one."""
    values, raw = scores(result), np.array([score for _, score in result["held_out"]])
    is_steady = (values >= 0.75 * np.maximum.accumulate(values)).all()
    return not has_collapsed(result) and bool(is_steady and (raw >= np.maximum.accumulate(raw) / 2).all())


def alarm_at(result: Result, signs: Sequence[Sign]) -> int | None:
    """Returns the step of the first alarm."""
    dog = Watchdog(signs=signs)
    alarms = (dog.watch(step, row) for step, row in enumerate(rows_of(result), start=1))
    return next((alarm.step for alarm in alarms if alarm), None)


def outcome(results: Sequence[Result], signs: Sequence[Sign]) -> Outcome:
    """Runs the watchdog over some runs; those between healthy and collapsed do not count."""
    collapses = [(alarm_at(result, signs), halved) for result in results if (halved := halved_at(result)) is not None]
    healthy = [alarm_at(result, signs) for result in results if is_healthy(result)]
    return Outcome(
        collapses=len(collapses),
        leads=sorted(halved - alarm for alarm, halved in collapses if alarm is not None and alarm <= halved),
        healthy=len(healthy),
        false_alarms=sum(alarm is not None for alarm in healthy),
    )


def fit(results: Sequence[Result]) -> list[Sign]:
    """Returns the chosen signs with their bounds."""
    healthy = [result for result in results if is_healthy(result)]
    collapses = [(result, halved) for result in results if (halved := halved_at(result)) is not None]
    candidates = [sign for sign in (_with_bound(sign, healthy) for sign in CANDIDATES) if sign is not None]
    # The alarm of several signs is the earliest of theirs: each is computed once.
    leads = {
        sign: np.array([_lead(alarm_at(result, [sign]), halved) for result, halved in collapses]) for sign in candidates
    }
    chosen: list[Sign] = []
    together = np.full(len(collapses), -1)
    while candidates:
        best = max(candidates, key=lambda sign: _quality(np.maximum(together, leads[sign])))
        if _quality(np.maximum(together, leads[best])) <= _quality(together):
            break
        chosen.append(best)
        together = np.maximum(together, leads[best])
    return chosen


def _lead(alarm: int | None, halved: int) -> int:
    """Returns the steps between alarm and collapse; -1 without an alarm in time."""
    return halved - alarm if alarm is not None and alarm <= halved else -1


def _quality(leads: np.ndarray) -> tuple[int, int]:
    return int((leads >= 0).sum()), int(leads.clip(0).sum())


def _with_bound(sign: Sign, healthy: Sequence[Result]) -> Sign | None:
    """Returns the sign with its bound; None if fewer than two healthy runs have the metric."""
    is_upward = sign.kind in ("above", "rise")
    shown = [list(_values(result, sign)) for result in healthy]
    farthest = max if is_upward else min
    extremes = [farthest(values) for values in shown if values]
    if len(extremes) < 2:
        return None
    logs = np.log(np.maximum(extremes, SMALLEST))
    away = DEVIATIONS * logs.std(ddof=1)
    bound = float(np.exp(logs.mean() + (away if is_upward else -away)))
    hair = 1e-9 if is_upward else -1e-9  # the watchdog's sums round otherwise
    return replace(sign, bound=farthest(bound, *extremes) * (1 + hair))


def _values(result: Result, sign: Sign) -> Iterator[float]:
    """Yields what the sign compares with its bound, step by step."""
    values = [row[sign.metric] for row in rows_of(result) if sign.metric in row]
    window = sign.window
    means = list(np.convolve(values, np.ones(window) / window, mode="valid")) if len(values) >= window else []
    for count in range(1, len(means) + 1):
        if (value := sign.value(means[:count])) is not None:
            yield float(value)


def in_first_half(result: Result) -> bool:
    """Returns True for the half that bounds are fitted on, by a hash of the run's name."""
    return hashlib.blake2b(result["key"].encode(), digest_size=1).digest()[0] % 2 == 0


def random_halves(results: Sequence[Result]) -> Outcome:
    """Returns the outcomes of signs on the halves that they were not fitted on, over many random halves together."""
    found = []
    for seed in range(RANDOM_HALVES):
        order = np.random.default_rng(seed).permutation(len(results))
        first, second = ([results[i] for i in half] for half in np.array_split(order, 2))
        found.append(outcome(second, fit(first)))
    return Outcome(
        collapses=sum(each.collapses for each in found),
        leads=sorted(lead for each in found for lead in each.leads),
        healthy=sum(each.healthy for each in found),
        false_alarms=sum(each.false_alarms for each in found),
    )


def main() -> None:
    """Prints the chosen signs, those that ship, and what both announce."""
    results, console = read_results(), Console(width=150)
    first = [result for result in results if in_first_half(result)]
    second = [result for result in results if not in_first_half(result)]
    half, whole = fit(first), fit(results)
    bounds = Table("metric", "kind", "window", "ships", "of the first half", "of all runs")
    columns = [
        {(sign.metric, sign.kind, str(sign.window)): f"{sign.bound:.3g}" for sign in signs}
        for signs in (SIGNS, half, whole)
    ]
    for key in dict.fromkeys(key for column in columns for key in column):
        bounds.add_row(*key, *(column.get(key, "") for column in columns))
    console.print(bounds)
    table = Table("runs", "signs", "collapses", "announced", "median lead", "lead ≥ 50", "healthy", "false alarms")
    rows = (
        ("first half", "of the first half", outcome(first, half)),
        ("second half", "of the first half", outcome(second, half)),
        (f"{RANDOM_HALVES} random second halves", "of the first half", random_halves(results)),
        ("all", "of all runs", outcome(results, whole)),
        ("all", "ships", outcome(results, SIGNS)),
    )
    for runs, signs, found in rows:
        median, long = (
            (f"{np.median(found.leads):.0f}", sum(lead >= 50 for lead in found.leads)) if found.leads else ("", 0)
        )
        table.add_row(
            runs, signs, *map(str, (found.collapses, len(found.leads), median, long, found.healthy, found.false_alarms))
        )
    console.print(table)


if __name__ == "__main__":
    main()
