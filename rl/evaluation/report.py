"""Reports of a sampling run: `results.json`, tables, and a file of pass rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl.evaluation.config import sampling_of
from rl.evaluation.results import pass_rate, summarise
from rl.run_dir.files import jsonl_line, write_atomically, write_json

if TYPE_CHECKING:
    from rl.evaluation.sampling import SampledAnswers

PASS_RATE_FILES = (".jsonl", ".parquet")
OVERALL = "all prompts"


def report_evaluation(answers: SampledAnswers, console: Console) -> dict[str, Any]:
    """Writes `results.json` into the run's folder, prints its tables, and returns its content."""
    summary = summarise(answers.results, answers.config.samples, seed=answers.config.seed)
    results = {**_head(answers), **summary}
    write_json(answers.run_dir / "results.json", results)
    parts = {**summary["tasks"], **({OVERALL: summary["overall"]} if len(summary["tasks"]) != 1 else {})}
    console.print(_figures(parts, summary), _lengths(parts), sep="\n")
    _print_rest(answers, summary["overall"], console)
    console.print(f"results: {answers.run_dir / 'results.json'}", highlight=False, soft_wrap=True)
    return results


def report_pass_rates(answers: SampledAnswers, output: Path | None, console: Console) -> Path:
    """Writes a row for each prompt, in the order of the data, and prints the distribution of pass rates.

    Args:
        answers: The run's answers.
        output: A .jsonl or .parquet file; None: `pass_rates.jsonl` in the run's folder.
        console: Prints the tables.

    Returns:
        The file.
    """
    file = output or answers.run_dir / "pass_rates.jsonl"
    blind = answers.config.blind
    rows = [
        {**pass_rate(result), "row": row, "blind": blind}
        for row, result in zip(answers.rows, answers.results, strict=True)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        temporary = file.with_suffix(".tmp")
        parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        temporary.rename(file)
    else:
        write_atomically(file, "".join(map(jsonl_line, rows)))
    console.print(_rates(rows))
    _print_rest(answers, summarise(answers.results, answers.config.samples)["overall"], console)
    console.print(f"pass rates: {file}", highlight=False, soft_wrap=True)
    return file


def check_output(output: Path | None) -> None:
    """Refuses a pass-rate file of an unknown format.

    Raises:
        ValueError: The file has another suffix.
    """
    if output is not None and output.suffix not in PASS_RATE_FILES:
        raise ValueError(f"output must end in {' or '.join(PASS_RATE_FILES)}, got {output}")


def _head(answers: SampledAnswers) -> dict[str, Any]:
    config = answers.config
    return {
        "model": config.model,
        "data": config.data,
        "reward": config.reward,
        "samples": config.samples,
        "sampling": {"preset": config.sampling, **asdict(sampling_of(config))},
        "correct": asdict(config.correct),
        "blind": config.blind,
        "seed": config.seed,
        "skipped": {str(row): reason for row, reason in answers.skipped.items()},
    }


def _table(*columns: str) -> Table:
    table = Table(*columns, box=SIMPLE_HEAD, collapse_padding=True)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _figures(parts: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> Table:
    table = _table("task", "figure", "value", f"{summary['level']:.0%} interval", "prompts")
    for task, part in parts.items():
        for place, (name, figure) in enumerate(part["figures"].items()):
            if name == "pass@1" and len(part["figures"]) > 1:
                continue  # the average under another name
            interval = f"{figure['low']:.3f} to {figure['high']:.3f}"
            label = escape(task) if place == 0 else ""
            table.add_row(label, name, f"{figure['value']:.3f}", interval, str(figure["prompts"]))
    if len(summary["tasks"]) > 1:
        for place, (name, value) in enumerate(summary["mean_over_tasks"].items()):
            if name != "pass@1":
                tasks = f"{len(summary['tasks'])} tasks"
                table.add_row("mean over tasks" if place == 0 else "", name, f"{value:.3f}", "", tasks)
    return table


def _lengths(parts: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("task", "samples", "tokens", "median", "95 %", "max", "cut", "reward", "no verdict")
    for task, part in parts.items():
        tokens = (f"{part['tokens'].get(name, 0):.0f}" for name in ("mean", "median", "p95", "max"))
        reward = "" if part["reward"] is None else f"{part['reward']:.3f}"
        samples, without_verdict = str(part["samples"]), str(part["without_verdict"])
        table.add_row(escape(task), samples, *tokens, f"{part['truncated']:.1%}", reward, without_verdict)
    return table


def _rates(rows: list[dict[str, Any]]) -> Table:
    """Returns a table of prompts by pass rate."""
    table = _table("task", "prompts", "none", "to 50 %", "to 90 %", "above", "all", "no verdict")
    table.title, table.title_justify = "prompts by share of correct samples", "left"
    for task in sorted({row["task"] for row in rows}):
        kinds = Counter(_kind(row["pass_rate"]) for row in rows if row["task"] == task)
        table.add_row(escape(task), str(kinds.total()), *(str(kinds[place]) for place in (0, 1, 2, 3, 4, None)))
    return table


def _kind(rate: float | None) -> int | None:
    if rate is None or rate in (0.0, 1.0):
        return None if rate is None else int(4 * rate)
    return 1 if rate <= 0.5 else 2 if rate <= 0.9 else 3


def _print_rest(answers: SampledAnswers, overall: Mapping[str, Any], console: Console) -> None:
    """Prints samples without a verdict, skipped prompts, and prompts that were finished before."""
    for verifier, count in overall["errors"].items():
        message = f"{count} of {overall['samples']} samples have no verdict from {verifier}: they are in no figure"
        console.print(message, style="yellow", highlight=False, markup=False)
    for reason, count in Counter(_general(reason) for reason in answers.skipped.values()).items():
        console.print(f"{count} prompts were skipped: {reason}", style="yellow", highlight=False, markup=False)
    before = len(answers.results) - answers.num_sampled
    if before > 0:
        console.print(f"{before} prompts were finished before, {answers.num_sampled} now", highlight=False)


def _general(reason: str) -> str:
    """Removes the row or prompt at the start of a reason."""
    return reason.split(": ", 1)[-1]
