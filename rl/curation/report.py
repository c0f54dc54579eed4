"""Reports of a selection: kept prompts, dropped prompts with reasons, a table, and the selected rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl.curation.config import SelectConfig
from rl.curation.select import REASONS, Selection
from rl.run_dir.files import jsonl_line, write_atomically, write_json
from rollout.data.json_rows import is_encoded
from rollout.data.prompts import Rows

if TYPE_CHECKING:
    from datasets import Dataset

MAX_TASKS = 6
"""Most tasks with columns in the table; report.json has all tasks."""


def write_selection(config: SelectConfig, selection: Selection, run_dir: Path, console: Console) -> Path:
    """Writes `selected.jsonl`, `dropped.jsonl` and `report.json` into a folder, and prints the table.

    Returns:
        The path of `selected.jsonl`, for `--selection` of a training recipe.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    kept = [
        {
            "row": query.row,
            "prompt_id": query.prompt_id,
            "task": query.task,
            "pass_rate": selection.rates.get(query.row),
        }
        for query in selection.kept
    ]
    dropped = [
        {"row": row, "prompt_id": name, "task": task, "reason": reason.reason, **reason.detail}
        for row, reason in sorted(selection.dropped.items())
        for name, task in [selection.names.get(row, ("", ""))]
    ]
    for name, rows in (("selected.jsonl", kept), ("dropped.jsonl", dropped)):
        write_atomically(run_dir / name, "".join(map(jsonl_line, rows)))
    write_json(run_dir / "report.json", {"choices": asdict(config), **counts(selection)})
    console.print(_table(selection))
    console.print(f"selection: {run_dir / 'selected.jsonl'}", highlight=False, soft_wrap=True)
    return run_dir / "selected.jsonl"


def counts(selection: Selection) -> dict[str, Any]:
    """Returns the numbers of queries, dropped and kept, and the mean pass rates, per task and over all."""
    tasks = {row: task for row, (_, task) in selection.names.items()}
    reasons = {row: dropped.reason for row, dropped in selection.dropped.items()}
    rows = {name: [row for row, task in tasks.items() if task == name] for name in sorted(set(tasks.values()))}
    by_task = {name: _counted(each, reasons, selection.rates) for name, each in rows.items()}
    return {"all": _counted(range(selection.num_rows), reasons, selection.rates), "tasks": by_task}


def _counted(rows: Sequence[int], reasons: Mapping[int, str], rates: Mapping[int, float | None]) -> dict[str, Any]:
    dropped = Counter(reasons[row] for row in rows if row in reasons)
    measured = {row: rate for row in rows if (rate := rates.get(row)) is not None}
    kept = [rate for row, rate in measured.items() if row not in reasons]
    return {
        "queries": len(rows),
        "dropped": {reason: dropped[reason] for reason in REASONS if dropped[reason]},
        "kept": len(rows) - dropped.total(),
        "pass_rate": fmean(measured.values()) if measured else None,
        "pass_rate_kept": fmean(kept) if kept else None,
    }


def _table(selection: Selection) -> Table:
    """Returns a table with a line for each reason and a column for each task."""
    figures = counts(selection)
    tasks = figures["tasks"] if 1 < len(figures["tasks"]) <= MAX_TASKS else {}
    columns = {**tasks, "all": figures["all"]}
    table = Table("", *map(escape, columns), box=SIMPLE_HEAD, collapse_padding=True)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("queries", *(str(each["queries"]) for each in columns.values()))
    for reason, words in REASONS.items():
        if reason in figures["all"]["dropped"]:
            table.add_row(f"− {words}", *(str(each["dropped"].get(reason, 0)) for each in columns.values()))
    table.add_row("kept", *(str(each["kept"]) for each in columns.values()), style="bold")
    if selection.rates:
        for name, words in (("pass_rate", "mean pass rate"), ("pass_rate_kept", "of kept queries")):
            rates = (each[name] for each in columns.values())
            table.add_row(words, *("" if rate is None else f"{rate:.2f}" for rate in rates))
    return table


def require_rows(rows: Rows, file: Path) -> None:
    """Refuses to write data that are no dataset.

    Raises:
        ValueError: The data are prompts.
    """
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        raise ValueError(
            f"output = {file} needs rows of a dataset, but the data are prompts: leave it out, and pass selected.jsonl to "
            "--selection"
        )


def write_rows(rows: Dataset, selection: Selection, file: Path) -> None:
    """Writes the selected rows with all columns and embedded pictures, as a dataset.

    Args:
        rows: The data, as `rl.data.rows_of` returns it.
        selection: The rows to write.
        file: A .parquet file.
    """
    from datasets import Dataset
    from datasets.table import embed_table_storage

    chosen = rows.select([query.row for query in selection.kept])
    # Columns that are made while a row is read (an absolute path, a drawn picture) are not stored.
    columns = set(chosen[0])
    features = rows.features if columns == set(rows.column_names) and not is_encoded(rows) else None
    with TemporaryDirectory() as cache:
        stored = Dataset.from_generator(_each, gen_kwargs={"rows": chosen}, features=features, cache_dir=cache)
        embedded = stored.with_format("arrow").map(embed_table_storage, batched=True, keep_in_memory=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        embedded.with_format(None).to_parquet(temporary)
    temporary.rename(file)


def _each(rows: Dataset) -> Iterator[Mapping[str, Any]]:
    for index in range(len(rows)):
        yield rows[index]
