"""What a selection leaves: the prompts that are kept, why the others are not, a table, and the selected rows themselves."""

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
from rl.run_dir.files import jsonl_line, write_json
from rollout.data.prompts import Rows

if TYPE_CHECKING:
    from datasets import Dataset

MOST_TASKS = 6
"""Of more tasks the table has no columns; report.json has them all."""


def write_selection(config: SelectConfig, selection: Selection, run_dir: Path, console: Console) -> Path:
    """Writes `selected.jsonl`, `dropped.jsonl` and `report.json` into a folder, and prints the table.

    Returns:
        `selected.jsonl`, which `--selection` of a training recipe takes.
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
        {"row": row, "prompt_id": name, "task": task, "reason": verdict.reason, **verdict.detail}
        for row, verdict in sorted(selection.dropped.items())
        for name, task in [selection.names.get(row, ("", ""))]
    ]
    for name, rows in (("selected.jsonl", kept), ("dropped.jsonl", dropped)):
        aside = run_dir / f".{name}"
        aside.write_text("".join(map(jsonl_line, rows)))
        aside.rename(run_dir / name)
    write_json(run_dir / "report.json", {"choices": asdict(config), **counts(selection)})
    console.print(_table(selection))
    console.print(f"selection: {run_dir / 'selected.jsonl'}", highlight=False, soft_wrap=True)
    return run_dir / "selected.jsonl"


def counts(selection: Selection) -> dict[str, Any]:
    """How many queries there were, went and stayed, of each task and of all; and the mean pass rate of all and of those kept."""
    tasks = {row: task for row, (_, task) in selection.names.items()}
    reasons = {row: verdict.reason for row, verdict in selection.dropped.items()}
    rows = {name: [row for row, task in tasks.items() if task == name] for name in sorted(set(tasks.values()))}
    told = {name: _counted(each, reasons, selection.rates) for name, each in rows.items()}
    return {"all": _counted(range(selection.num_rows), reasons, selection.rates), "tasks": told}


def _counted(rows: Sequence[int], reasons: Mapping[int, str], rates: Mapping[int, float | None]) -> dict[str, Any]:
    gone = Counter(reasons[row] for row in rows if row in reasons)
    measured = {row: rate for row in rows if (rate := rates.get(row)) is not None}
    kept = [rate for row, rate in measured.items() if row not in reasons]
    return {
        "queries": len(rows),
        "dropped": {reason: gone[reason] for reason in REASONS if gone[reason]},
        "kept": len(rows) - gone.total(),
        "pass_rate": fmean(measured.values()) if measured else None,
        "pass_rate_kept": fmean(kept) if kept else None,
    }


def _table(selection: Selection) -> Table:
    """A line for each reason, a column for each task."""
    told = counts(selection)
    tasks = told["tasks"] if 1 < len(told["tasks"]) <= MOST_TASKS else {}
    columns = {**tasks, "all": told["all"]}
    table = Table("", *map(escape, columns), box=SIMPLE_HEAD, collapse_padding=True)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("queries", *(str(each["queries"]) for each in columns.values()))
    for reason, words in REASONS.items():
        if reason in told["all"]["dropped"]:
            table.add_row(f"− {words}", *(str(each["dropped"].get(reason, 0)) for each in columns.values()))
    table.add_row("kept", *(str(each["kept"]) for each in columns.values()), style="bold")
    if selection.rates:
        for name, words in (("pass_rate", "mean pass rate"), ("pass_rate_kept", "of those kept")):
            rates = (each[name] for each in columns.values())
            table.add_row(words, *("" if rate is None else f"{rate:.2f}" for rate in rates))
    return table


def require_rows(rows: Rows, file: Path) -> None:
    """Refuses to write what is no dataset.

    Raises:
        ValueError: The data are prompts.
    """
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        raise ValueError(
            f"output = {file} is for rows of a dataset, and the data are prompts: leave it out, and pass selected.jsonl to "
            "--selection"
        )


def write_rows(rows: Dataset, selection: Selection, file: Path) -> None:
    """Writes the selected rows with all their columns, pictures embedded, for whatever reads datasets.

    Args:
        rows: The data, as `rl.data.rows_of` has it.
        selection: Which of them.
        file: A .parquet file.
    """
    from datasets import Dataset
    from datasets.table import embed_table_storage

    chosen = rows.select([query.row for query in selection.kept])
    # What is made as a row is read (an absolute path, a drawn picture) is in no stored column.
    made = list(chosen[0])
    features = rows.features if set(made) == set(rows.column_names) else None
    with TemporaryDirectory() as cache:
        stored = Dataset.from_generator(_each, gen_kwargs={"rows": chosen}, features=features, cache_dir=cache)
        embedded = stored.with_format("arrow").map(embed_table_storage, batched=True, keep_in_memory=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".tmp")
        embedded.with_format(None).to_parquet(aside)
    aside.rename(file)


def _each(rows: Dataset) -> Iterator[Mapping[str, Any]]:
    for index in range(len(rows)):
        yield rows[index]
