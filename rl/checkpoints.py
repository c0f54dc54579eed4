"""Lists the checkpoints of a run, and checks them: `python -m rl.checkpoints runs/digit_sums`.

All files are compared with their SHA-256 sums. Exits with status 1 if a checkpoint is damaged.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl.run_dir.checkpoint import list_checkpoints, load_metrics, step_of
from rl.run_dir.sums import damage_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    metric: str = "eval/greedy"
    """The metric to show."""
    quick: bool = False
    """Leaves out the files of weights."""


def main(options: Options, console: Console) -> int:
    """Prints a table, and returns the number of damaged checkpoints."""
    found = list_checkpoints(options.run_dir)
    if not found:
        console.print(f"no checkpoint in {options.run_dir / 'checkpoints'}", highlight=False)
        return 0
    table = Table("step", "GB", options.metric, "files", title=str(options.run_dir), title_justify="left")
    damages = [damage_of(folder, quick=options.quick) for folder in found]
    for folder, damage in zip(found, damages, strict=True):
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        value = load_metrics(folder).get(options.metric)
        state = f"[red]damaged: {escape(damage)}" if damage else "[green]whole" + (", weights unread" * options.quick)
        shown = "" if value is None else f"{value:.4g}"
        table.add_row(str(step_of(folder)), f"{num_bytes / 1e9:.3f}", shown, state)
    console.print(table)
    return sum(map(bool, damages))


if __name__ == "__main__":
    program = os.environ.get("SAPO_PROGRAM", "python -m rl.checkpoints")
    sys.exit(bool(main(tyro.cli(Options, prog=program, description=__doc__), Console())))
