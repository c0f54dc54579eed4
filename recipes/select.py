"""Selects training queries by pass rates and similarity, and reports the dropped ones with reasons; trains nothing.

    python -m recipes.measure_pass_rate CHECKPOINT --data train.parquet --reward math_answer --output rates.jsonl

    python -m recipes.measure_pass_rate CHECKPOINT --data train.parquet --reward math_answer --output blind.jsonl --blind

    python -m recipes.select --data train.parquet --pass-rates rates.jsonl --blind-pass-rates blind.jsonl
        --against test.parquet mathvista=AI4Math/MathVista@testmini --output selected.parquet

It drops queries that are never solved, nearly always solved, solved without their images, or in an evaluation set. Of
near-duplicates it keeps the first. The run's folder has selected.jsonl for --selection of a training recipe, dropped.jsonl with
the reason for each query, and report.json with the counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl.cli import main
from rl.curation.config import SelectConfig, check_selection


@dataclass(frozen=True, kw_only=True)
class Select(SelectConfig):
    """The criteria."""


def run(config: Select) -> None:
    """Reads, compares, writes the selection."""
    check_selection(config)
    # Late imports: `--help` and mistyped options do not wait for datasets.
    from rich.console import Console

    from rl.curation.report import require_rows, write_rows, write_selection
    from rl.curation.select import select
    from rl.data import rows_of
    from rollout.data.prompts import prompts_from

    rows, to_prompt = rows_of(config)
    if config.output is not None:
        require_rows(rows, config.output)
    selection = select(config, prompts_from(rows, to_prompt))
    folder = config.run_dir or Path("runs/select") / Path(config.data.rpartition(":")[-1]).stem
    write_selection(config, selection, folder, Console())
    if not selection.kept:
        raise ValueError(f"nothing is left of {selection.num_rows} queries: {folder / 'report.json'} has the reasons")
    if config.output is not None:
        write_rows(rows, selection, config.output)
        print(f"rows: {config.output}")


if __name__ == "__main__":
    main(run, Select, __doc__)
