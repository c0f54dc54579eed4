"""Computes the grid of gates, run by run, and prints its tables. A run that is in the results is not computed again.

    python -m bench.gates --minutes 20
    python -m bench.gates --tables-only

Each of two processes has one thread and computes one run at a time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from bench.gates.cells import LEARNING_RATES, Cell, grid
from bench.gates.results import FOLDER, read_results, store

PILOT_RATES = (3e-5, 6e-5, 1e-4)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the grid."""

    minutes: float = 20.0
    """No run starts after so many minutes."""
    seeds: int = 5
    """Runs of each cell."""
    only: str = ""
    """Regular expression: only runs whose name it finds, such as ^sums/dense/.*/32/."""
    processes: int = os.cpu_count() or 1
    """Runs at once, each with one thread."""
    pilot: bool = False
    """SAPO and GRPO at several learning rates, N = 32, instead of the grid: where do they differ?"""
    tables_only: bool = False
    """Prints the tables of the results and computes nothing."""
    page: bool = False
    """Also writes docs/sapo_grid.md and its picture."""
    cache: Path = Path("runs/gates")
    """Folder of the cold starts."""


def main(options: Options) -> None:
    """Computes runs until the time is over, then prints the tables."""
    if not options.tables_only:
        _compute(options)
    from bench.gates.page import write_page
    from bench.gates.tables import tables

    results, console = read_results(), Console(width=180)
    for table in tables(results):
        console.print(table.printed())
    if options.page:
        write_page(results)


def _compute(options: Options) -> None:
    from bench.gates.run import run_cell, use_one_thread

    known = {result["key"] for result in read_results()}
    cells = (cell for cell in _cells(options) if cell.key not in known and re.search(options.only, cell.key))
    deadline = time.monotonic() + 60 * options.minutes
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), initializer=use_one_thread) as pool:
        running: dict[Future[dict[str, Any]], Cell] = {}

        def start(count: int) -> None:
            for cell in islice(cells, count if time.monotonic() < deadline else 0):
                running[pool.submit(run_cell, cell, options.cache)] = cell

        failed: Exception | None = None
        start(options.processes)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                try:
                    _keep(cell, future)
                except Exception as error:  # the runs beside it are kept before it ends the program
                    error.add_note(f"run {cell.key}")
                    failed, deadline = error, 0.0
                start(1)
    if failed:
        raise failed


def _keep(cell: Cell, future: Future[dict[str, Any]]) -> None:
    """Stores a run's result. One that fails is named and left for the next time."""
    from bench.gates.run import summary

    try:
        result = future.result()
    except FloatingPointError as error:  # no finite gradient, several updates in a row: a collapse, not a fault
        print(f"{cell.key}: {error}", flush=True)
        return
    store(cell, {**asdict(cell), **result, "made": date.today().isoformat(), "on": _machine()})
    print(summary(result), flush=True)


def _cells(options: Options) -> Iterator[Cell]:
    if not options.pilot:
        yield from grid(options.seeds)
        return
    for task, rate, name in product(LEARNING_RATES, PILOT_RATES, ("sapo", "grpo")):
        yield Cell(task=task, kind="dense", objective=name, updates=32, seed=0, learning_rate=rate, steps=40)


def _processor() -> str:
    """Returns the processor's name, or the architecture where Linux does not tell it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{_processor()}, Python {platform.python_version()}, {libraries}"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(json.dumps({"results": str(FOLDER)}))
    main(tyro.cli(Options, description=__doc__))
