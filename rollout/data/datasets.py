"""Memory-mapped rows of the hub, of folders and of files. `prompts_from(read_rows(...), mapping)` makes prompts of them.

Example:
    prompts = prompts_from(read_rows("hiyouga/geometry3k", "train"), geometry3k)
    prompts = prompts_from(read_rows("my_data/train.jsonl"), column_mapping(image="picture"))
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""File suffix -> name of its reader. In a folder, only files of the first suffix that occurs are read."""
MEDIA = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .mp4 .webm .mkv .mov .avi".split())
"""Suffixes of texts that may be the path of an image or a video."""
SAMPLE = 20
"""Rows that are searched for paths."""
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
_NO_ROWS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


def read_rows(source: str | Path, split: str | None = None, *, subset: str | None = None) -> Dataset:
    """Reads a dataset. Its rows stay on disk until they are read.

    Images may be embedded, as in datasets of the hub, or paths: absolute, or relative to `source` or to the folder of the file.
    Relative paths in texts, lists and `{"bytes": None, "path": ...}` become absolute as rows are read.

    Args:
        source: A .parquet, .jsonl, .json or .csv file; a folder of such files, or one that `save_to_disk` has written; or else the
            name of a dataset on the hub. A file in a folder is named after its split, with or without a shard's number
            (`train-00000-of-00002.parquet`). If its name is only a number, its folder is named after the split.
        split: The split; may be left out if there is only one.
        subset: The subset (configuration) of a dataset on the hub, such as `main` of `openai/gsm8k`.

    Raises:
        ValueError: If there is no such file, dataset or split, if one of several splits must be named, or if reading fails.
    """
    path = Path(source).expanduser()
    if path.is_file():
        name = _split_of(path)
        return _read(_choose({name: [path]}, split, source), [path.parent])
    if path.is_dir():
        return _read_folder(path, split)
    if path.suffix in KINDS or path.is_absolute() or str(source).startswith(".") or len(path.parts) > 2:
        raise ValueError(
            f"there is no file or folder {source}: give a {', '.join(KINDS)} file, a folder, or OWNER/NAME"
        )
    return _read_hub(str(source), split, subset)


def _read_folder(folder: Path, split: str | None) -> Dataset:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        saved = load_from_disk(str(folder))
        return _choose(saved, split, folder) if isinstance(saved, Mapping) else saved
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in KINDS and path.name not in _NO_ROWS]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise ValueError(f"{folder} holds no {', '.join(KINDS)} file")
    kind = next(suffix for suffix in KINDS if any(path.suffix == suffix for path in files))
    splits: dict[str, list[Path]] = {}
    for path in files:
        if path.suffix == kind:
            splits.setdefault(_split_of(path), []).append(path)
    chosen = _choose(splits, split, folder)
    return _read(chosen, [folder, *dict.fromkeys(path.parent for path in chosen)])


def _read_hub(name: str, split: str | None, subset: str | None) -> Dataset:
    from datasets import get_dataset_split_names, load_dataset

    try:
        if split is None:
            splits = get_dataset_split_names(name, subset)
            split = _choose({each: each for each in splits}, None, name)
        return load_dataset(name, subset, split=split)
    except OSError as error:  # it does not exist, or the hub cannot be reached
        raise ValueError(f"{name} is neither a file nor a folder, and cannot be read from the hub: {error}") from error


def _choose(splits: Mapping[str, T], split: str | None, source: Any) -> T:
    """Returns the named split. A single split may be called `train`, as in `datasets`."""
    if split is not None and split in splits:
        return splits[split]
    if len(splits) == 1 and split in (None, "train"):
        return next(iter(splits.values()))
    known = ", ".join(map(repr, splits))
    if split is None:
        raise ValueError(f"{source} has the splits {known}: name one, e.g. read_rows(..., {next(iter(splits))!r})")
    raise ValueError(f"{source} has no split {split!r}: name one of {known}")


def _split_of(path: Path) -> str:
    if shard := _SHARD.fullmatch(path.stem):
        return shard[1]
    return path.parent.name if path.stem.isdigit() else path.stem


def _read(files: Sequence[Path], folders: Sequence[Path]) -> Dataset:
    """Reads files of one split.

    Args:
        files: Files of the same suffix.
        folders: Folders to which their paths may be relative, in this order.
    """
    from datasets import load_dataset

    named = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    kind = KINDS.get(files[0].suffix)
    if kind is None:
        raise ValueError(f"{named} has an unknown file type: give a {', '.join(KINDS)} file")
    try:
        rows = load_dataset(kind, data_files=[str(path.absolute()) for path in files], split="train")
    except Exception as error:  # pyarrow's, pandas', datasets' and, of an empty file, a StopIteration
        reason = error.__cause__ or error
        message = f"{type(reason).__name__}: {reason}" if str(reason) else "it has no rows"
        raise ValueError(f"{named} cannot be read as {kind}: {message}") from error
    return _with_absolute_paths(rows, [folder.absolute() for folder in folders])


def _with_absolute_paths(rows: Dataset, folders: Sequence[Path]) -> Dataset:
    found: dict[str, Path] = {}
    for name in rows.column_names:
        values = rows.data.column(name).slice(0, SAMPLE).to_pylist()  # as stored: nothing is decoded
        paths = [path for value in values for path in _paths(value)]
        homes = [folder for folder in folders if any((folder / path).is_file() for path in paths)]
        if homes:
            found[name] = homes[0]
            rows = rows.cast_column(name, _undecoded(rows.features[name]))
    return rows.with_transform(partial(_absolute, found)) if found else rows


def _paths(value: Any) -> Iterator[str]:
    """Yields the relative paths of images and videos in a value."""
    if isinstance(value, str):
        if Path(value).suffix.lower() in MEDIA and not Path(value).is_absolute():
            yield value
    elif isinstance(value, Mapping):
        if value.get("bytes") is None:
            yield from _paths(value.get("path"))
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)


def _undecoded(feature: Any) -> Any:
    """Returns a feature with images and videos as `{"bytes": ..., "path": ...}`. `datasets` would search them in the cwd."""
    from datasets import Image, List, Video

    if isinstance(feature, Image | Video):
        return type(feature)(decode=False)
    return List(_undecoded(feature.feature)) if isinstance(feature, List) else feature


def _absolute(folders: Mapping[str, Path], batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Returns a batch of rows with absolute paths in some columns."""
    return {
        name: [_from(folders[name], value) for value in values] if name in folders else values
        for name, values in batch.items()
    }


def _from(folder: Path, value: Any) -> Any:
    if isinstance(value, str):
        return str(folder / value) if any(_paths(value)) else value
    if isinstance(value, Mapping) and any(_paths(value)):
        return {**value, "path": str(folder / value["path"])}
    return [_from(folder, item) for item in value] if isinstance(value, list) else value
