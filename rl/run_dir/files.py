"""Files of a run's folder that are whole or absent, whenever the run is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> Path:
    """Writes a temporary file beside `path`, then renames it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    return temporary.rename(path)


def append_whole(path: Path, text: str) -> None:
    """Appends a text to a file; one that does not fit the disk leaves the file as it was.

    Raises:
        OSError: It does not fit, or the file cannot be written.
    """
    left = text.encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            os.truncate(path, size)
            raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file; objects that JSON lacks become text."""
    write_atomically(path, json.dumps(content, indent=1, default=str))


def jsonl_line(row: Mapping[str, Any]) -> str:
    """One row of a JSONL file; objects that JSON lacks become text."""
    return json.dumps(row, default=str) + "\n"


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Names what is read in the error, whatever its content makes the block raise.

    Raises:
        ValueError: The block has raised an error. A plain ValueError stays as it is.
    """
    try:
        yield
    except Exception as error:
        if type(error) is ValueError:
            raise
        raise ValueError(f"{what} cannot be read: {type(error).__name__}: {error}") from error
