"""The results of the grid: one line of JSON for each run, in files by task and kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.gates.cells import Cell

FOLDER = Path(__file__).parent / "results"


def read_results() -> list[dict[str, Any]]:
    """Returns all results."""
    files = sorted(FOLDER.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def store(cell: Cell, result: dict[str, Any]) -> None:
    """Appends a result to its file."""
    with (FOLDER / f"{cell.task}_{cell.kind}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, ensure_ascii=False) + "\n")
