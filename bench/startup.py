"""Measures how long the command `sapo` takes to show its help, or to refuse a mistake.

    python -m bench.startup

Each command runs several times in turn with the others. It exits with status 1 if the median of one is above a second.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from rl.command import COMMANDS

LIMIT_SECONDS = 1.0
MISTAKES = ("train digit_sum", "train digit_sums --stps 3", "train no.toml", "doctr")
"""Command lines that are refused: an unknown recipe, option, file, subcommand."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    repeats: int = 5
    """Runs of each command."""
    output: Path = Path("bench/results/startup.json")
    """File of the figures."""


def main(options: Options) -> None:
    """Runs the commands in turn, prints a table, and writes JSON."""
    helps = ["--help", "train --help", "train digit_sums --help", "train general_rl --preset 8B --help"]
    commands = [*helps, *(f"{name} --help" for name in COMMANDS), *MISTAKES]
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeats):
        for command in commands:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "rl.command", *command.split()], capture_output=True, check=False)
            seconds[command].append(time.perf_counter() - start)
    table = Table("sapo", "median, s", "longest, s")
    medians = {command: statistics.median(runs) for command, runs in seconds.items()}
    for command, median in sorted(medians.items(), key=lambda each: -each[1]):
        table.add_row(command, f"{median:.2f}", f"{max(seconds[command]):.2f}")
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(seconds, indent=1))
    sys.exit(max(medians.values()) > LIMIT_SECONDS)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
