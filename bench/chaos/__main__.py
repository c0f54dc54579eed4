"""Brings random faults upon a real run, and compares it with an undisturbed one.

    python -m bench.chaos --faults 100
    python -m bench.chaos --faults 40 --transfer nccl --more="--rollout.num-engines 2 --rollout.verify-weights"

Kills, stops, signals, damaged files, a full disk: see `bench.chaos.faults`. Nobody helps the run; one that a signal has ended is
started again, as a scheduler does. It exits with status 1 if a step is missing or there twice, if a metric that does not depend on
the machine differs, if the last checkpoint does not load, or if a process, shared memory or temporary file remains.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from bench.chaos.faults import FAULTS, FAULTS_OF_TRANSFERS, Fault, NotThere
from bench.chaos.run import ChaosRun
from rl.run_dir.sums import damage_of
from rl.run_dir.tracker import read_metrics
from rollout.config import Backend

OF_THE_MACHINE = ("time/", "sync/", "memory/", "rollout/tokens_per_second")
"""Metrics that differ between any two runs."""
OF_ROUNDING = ("rollout/logprob_gap", "rollout/mismatch")
"""Metrics of rounding: an engine rounds differently when it processes other completions at the same time."""
ROUNDING = 1e-5
IN_RECOVERY = 0.15
"""Share of the faults that come while the run recovers from the one before."""
RECOVERY_SECONDS = 12.0
"""They come within so many seconds after that one."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the bench."""

    faults: int = 100
    """Number of faults, of all kinds in turn, in random order."""
    seed: int = 0
    """Seeds their order and their moments."""
    only: str = ""
    """Only the kinds with this in their names."""
    transfer: Backend = "shared_memory"
    """Transport of weights. NCCL and CUDA IPC on GPUs that are not there: they have faults of their own, and a rank per engine."""
    more: str = ""
    """More options of both runs, such as --learner.cpu-ranks 2."""
    folder: Path = Path("runs/chaos")
    """Folder of the two runs; the undisturbed one is not repeated."""
    output: Path = Path("bench/results/chaos.json")
    """File of the result."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One fault that has come upon the run."""

    kind: str
    step: int
    """The last step before it."""
    in_recovery: bool
    """It came while the run recovered from the one before."""
    seconds: float
    """Seconds until the next step was logged."""


def main(options: Options) -> None:
    """Runs both, compares them, prints a table, and writes JSON."""
    kinds = {**FAULTS, **FAULTS_OF_TRANSFERS[options.transfer]}
    if not any(options.only in name for name in kinds):
        sys.exit(f"--only {options.only}: no fault has this in its name; there are {', '.join(kinds)}")
    kinds = {name: fault for name, fault in kinds.items() if options.only in name}
    started, console = time.monotonic(), Console(width=160)
    options.folder.mkdir(parents=True, exist_ok=True)
    folder, steps = options.folder.resolve(), 3 * options.faults + 10
    name = f"undisturbed_{steps}_{zlib.crc32(f'{options.transfer} {options.more}'.encode()):08x}"
    undisturbed = ChaosRun(folder, name, steps, transfer=options.transfer, more=options.more)
    if undisturbed.step() < steps:
        with undisturbed.killed_on_failure():
            undisturbed.start()
            undisturbed.wait_for_step(steps + 1)
    name = f"chaos_{options.seed}_{time.strftime('%m%d_%H%M%S')}"
    run = ChaosRun(folder, name, steps, transfer=options.transfer, more=options.more, on_small_disk=True)
    with run.killed_on_failure():
        events = disturb(run, options, kinds, console)
        problems = differences(undisturbed.run_dir, run.run_dir, steps) + run.left_behind()
        run.close()
    minutes = (time.monotonic() - started) / 60
    console.print(
        table_of(events), f"{len(events)} faults, {run.starts} starts, {minutes:.1f} minutes", highlight=False
    )
    if run.exits:
        console.print(f"{len(run.exits)} signals: ended after at most {max(run.exits):.1f} s", highlight=False)
    console.print("\n".join(problems) or "nothing is missing, different or left behind", highlight=False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"events": [vars(event) for event in events], "minutes": minutes, "exits": run.exits, "problems": problems}
    options.output.write_text(json.dumps(result, indent=1))
    sys.exit(bool(problems))


def disturb(run: ChaosRun, options: Options, faults: Mapping[str, Fault], console: Console) -> list[Event]:
    """Starts the run and brings the faults upon it, one every two steps or so. Returns them when the run has ended."""
    rng = random.Random(options.seed)
    order = [list(faults)[number % len(faults)] for number in range(options.faults)]
    rng.shuffle(order)
    events: list[Event] = []
    run.start()
    for number, kind in enumerate(order):
        in_recovery = number > 0 and rng.random() < IN_RECOVERY
        if not in_recovery:
            run.wait_for_step(max(2 * number + 1, run.step()))
        wait_at_most(run, rng.uniform(0.0, RECOVERY_SECONDS if in_recovery else 1.0))
        while True:
            if run.has_ended():
                raise RuntimeError(f"the run has ended before fault {number + 1} of {len(order)}")
            step = run.step()
            try:
                faults[kind](run, rng)
                break
            except (NotThere, ProcessLookupError, IndexError):  # no such process now
                time.sleep(0.2)
        came = time.monotonic()
        if not in_recovery and number + 1 < len(order):
            run.wait_for_step(step + 1)
        seconds = time.monotonic() - came
        events.append(Event(kind=kind, step=step, in_recovery=in_recovery, seconds=seconds))
        console.print(f"{number + 1:3d} step {step:4d} {kind}: {seconds:.1f} s", highlight=False)
    run.wait_for_step(run.steps + 1)
    return events


def wait_at_most(run: ChaosRun, seconds: float) -> None:
    """Waits so long, or until the next step is logged."""
    step, until = run.step(), time.monotonic() + seconds
    while run.step() <= step and time.monotonic() < until and not run.has_ended():
        time.sleep(0.02)


def differences(undisturbed: Path, disturbed: Path, steps: int) -> list[str]:
    """Returns what is missing in the disturbed run, or differs from the undisturbed one."""
    problems = []
    rows = {}
    for row in read_metrics(disturbed):
        if row["step"] in rows:
            problems.append(f"step {row['step']:g} is there twice")
        rows[row["step"]] = row
    for expected in read_metrics(undisturbed):
        row = rows.get(expected["step"])
        if row is None:
            problems.append(f"step {expected['step']:g} is missing")
            continue
        for name in sorted(expected.keys() | row.keys()):
            if not name.startswith(OF_THE_MACHINE) and "failures" not in name and not _equal(name, expected, row):
                problems.append(
                    f"step {expected['step']:g}: {name} is {row.get(name)}, undisturbed {expected.get(name)}"
                )
    checkpoint = disturbed / "checkpoints" / f"step_{steps}"
    if damage := damage_of(checkpoint):
        problems.append(f"{checkpoint}: {damage}")
    else:
        from transformers import AutoModelForImageTextToText

        AutoModelForImageTextToText.from_pretrained(checkpoint)
    return problems


def _equal(name: str, expected: dict[str, float], row: dict[str, float]) -> bool:
    if name not in expected or name not in row:
        return False
    return abs(expected[name] - row[name]) <= (ROUNDING if name.startswith(OF_ROUNDING) else 0.0)


def table_of(events: list[Event]) -> Table:
    """Returns a table of the kinds, with the seconds until the next step."""
    table = Table("fault", "number", "median, s", "longest, s", title="until the next step")
    for kind in dict.fromkeys(event.kind for event in sorted(events, key=lambda event: event.kind)):
        those = [event for event in events if event.kind == kind]
        seconds = [event.seconds for event in those if not event.in_recovery] or [0.0]
        table.add_row(kind, str(len(those)), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}")
    return table


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
