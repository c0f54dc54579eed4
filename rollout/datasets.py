"""Rows of a dataset: a file of JSON lines or parquet, a folder of such, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, load_dataset

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_rows(source: str | Path, split: str | None = None) -> Dataset:
    """Reads one split.

    Args:
        source: A file, a folder that `datasets` knows how to read, or a hub name.
        split: Which; default: the only one there is, or `train`.

    Raises:
        ValueError: If there is no such dataset, or no such split; says which there are.
    """
    path = Path(source).expanduser()
    try:
        if path.suffix in FORMATS and path.is_file():
            found = load_dataset(FORMATS[path.suffix], data_files=str(path))
        else:
            found = load_dataset(str(source))
    except Exception as error:  # whatever a file, a folder or the hub has against it
        raise ValueError(
            f"the dataset '{source}' cannot be read ({str(error).strip().partition(chr(10))[0]}): "
            f"pass a {', '.join(FORMATS)} file, a folder of such, or a hub name"
        ) from error
    name = split or (next(iter(found)) if len(found) == 1 else "train")
    if name not in found:
        raise ValueError(f"the dataset '{source}' has no split '{name}': choose one of {', '.join(found)}")
    return found[name]
