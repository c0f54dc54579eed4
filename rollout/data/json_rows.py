"""Rows of JSON files with every value as it is written: `datasets` would make dates of texts, and floats of long integers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

ENCODED = "each value is JSON text"
"""Description of a dataset whose stored values are to be decoded by `decoded`."""


def load_json(files: Sequence[Path], state: str) -> Dataset:
    """Reads JSON files as a dataset on disk, with each value as JSON text. A row that lacks a column has None there.

    Args:
        files: Files with one object a line, or with a list of objects; compressed or not.
        state: A name of the files' present state. Rows of an earlier state are not taken from the cache.

    Raises:
        ValueError: If a line is no JSON object, or if there are no rows.
    """
    from datasets import Dataset, Features, Value

    names = dict.fromkeys(name for row in _rows(files) for name in row)
    if not names:
        raise ValueError("it has no rows")
    rows = Dataset.from_generator(
        _encoded_rows,
        gen_kwargs={"files": tuple(str(path.absolute()) for path in files), "names": tuple(names), "state": state},
        features=Features({name: Value("string") for name in names}),
    )
    rows.info.description = ENCODED
    return rows


def is_encoded(rows: Dataset) -> bool:
    """Returns True for a dataset of `load_json`, whose features are not those of its values."""
    return rows.info.description == ENCODED


def decoded(value: str | None) -> Any:
    """Returns the value of a stored text."""
    return None if value is None else json.loads(value)


def _encoded_rows(files: Sequence[str], names: Sequence[str], state: str) -> Iterator[dict[str, str | None]]:
    for row in _rows([Path(path) for path in files]):
        yield {name: None if row.get(name) is None else json.dumps(row[name]) for name in names}


def _rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        for number, row in _objects(path):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} of {path} is a {type(row).__name__}: write one object for each row")
            yield row


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    with pa.input_stream(str(path)) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        if path.name.removesuffix(path.suffix).endswith(".json") or path.suffix == ".json":
            content = text.read()
            try:
                whole = json.loads(content)
            except ValueError:
                lines: Any = content.splitlines()  # objects, one a line, in a file of this name
            else:
                yield from enumerate(whole if isinstance(whole, list) else [whole], 1)
                return
        else:
            lines = text
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON ({error}): write one object a line") from error
