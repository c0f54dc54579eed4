"""Memory-mapped rows of the hub, of folders and of files. `prompts_from(read_rows(...), mapping)` makes prompts of them.

Example:
    prompts = prompts_from(read_rows("hiyouga/geometry3k", "train"), geometry3k)
    prompts = prompts_from(read_rows("my_data/train.jsonl"), column_mapping(image="picture"))
"""

from __future__ import annotations

import glob
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rollout.data.files import LONGEST_PATH
from rollout.data.json_rows import decoded, is_encoded, load_json

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

T = TypeVar("T")

KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
"""File suffix -> name of its reader. Of a split that a folder has in several kinds of file, the first kind is read."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
SPLITS = frozenset("train training validation valid val dev test testing eval".split())
"""Names of folders that name the split of the files in them."""
MEDIA = frozenset(
    """
    .png .jpg .jpeg .jfif .jp2 .webp .bmp .gif .tif .tiff .heic .heif .avif .svg
    .mp4 .m4v .webm .mkv .mov .avi .mpg .mpeg .ts .flv .wmv .3gp .ogv
    """.split()
) | {""}
"""Suffixes of texts that may be the path of an image or a video; it may have none."""
_MEDIA_COLUMN = re.compile(r"image|img|picture|photo|video|clip|frame|screenshot|media|file|path", re.IGNORECASE)
"""Names of columns whose texts may be paths. An answer such as `a.png` is none, whatever files there are."""
_CONVERSATIONS = frozenset({"messages", "conversations", "conversation", "prompt"})
"""Columns with messages, whose parts may hold paths."""
_HOLDERS = frozenset({"path", "image", "video", "image_url", "video_url", "url", "frames"})
"""Keys of a mapping, such as a part of a message, whose texts may be paths."""
_NO_PATH = re.compile(r"data:|[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)
"""Begins a text that holds a picture itself, or its address."""
_HOME = "__home__"
"""A column with the number of the folder that a row's paths lead from."""
LARGE_GIB = 1.0
"""Size of files whose copy into the cache is announced."""
CHUNK = 1000
MISSING_FILES = 100
"""Paths of files that are not there before a column is taken for one of texts."""
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
_NO_ROWS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


def read_rows(source: str | Path, split: str | None = None, *, subset: str | None = None) -> Dataset:
    """Reads a dataset. Its rows stay on disk until they are read.

    Images may be embedded, as in datasets of the hub, or paths: absolute, or relative to `source` or to the folder of the file.
    Relative paths in texts, lists, `{"bytes": None, "path": ...}` and parts of messages become absolute as rows are read.

    Args:
        source: A .parquet, .arrow, .jsonl, .json, .csv or .tsv file, compressed or not. Or a folder of such files, or one that
            `save_to_disk` has written. Or else the name of a dataset on the hub. A file in a folder is named after its split,
            with or without a shard's number (`train-00000-of-00002.parquet`), or it is in a folder named after the split.
            Every cell of a .csv or .tsv file is a text.
        split: The split; may be left out if there is only one.
        subset: The subset (configuration) of a dataset, such as `main` of `openai/gsm8k`; of a folder, the folder in it.

    Raises:
        ValueError: If there is no such file, dataset or split, if one of several splits must be named, or if reading fails.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read(_choose({_split_of(path, path.parent): [path]}, split, source), path.parent)
    if path.is_dir():
        if subset is not None and (path / subset).is_dir():
            return _read_folder(path / subset, split)
        others = [each.name for each in path.iterdir() if each.is_dir() and each.name not in {*SPLITS, "data"}]
        if subset is not None and others:  # else the folder may be of this subset alone
            raise ValueError(
                f"{source} has no folder {subset!r} for subset = {subset!r}, only {', '.join(sorted(others))}"
            )
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
    files = [path for path in sorted(folder.rglob("*")) if _suffix_of(path) in KINDS and path.name not in _NO_ROWS]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise ValueError(f"{folder} holds no {', '.join(KINDS)} file")
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path, folder), []).append(path)
    chosen = _choose(splits, split, folder)
    kind = next(suffix for suffix in KINDS if any(_suffix_of(path) == suffix for path in chosen))
    return _read([path for path in chosen if _suffix_of(path) == kind], folder)


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
    """Returns the named split. A single split of no usual name may be called `train`, as in `datasets`."""
    if split is not None and split in splits:
        return splits[split]
    if len(splits) == 1 and (split is None or (split == "train" and next(iter(splits)) not in SPLITS)):
        return next(iter(splits.values()))
    known = ", ".join(map(repr, splits))
    if split is None:
        raise ValueError(f"{source} has the splits {known}: name one, e.g. read_rows(..., {next(iter(splits))!r})")
    raise ValueError(f"{source} has no split {split!r}: name one of {known}")


def _suffix_of(path: Path) -> str:
    """Returns the suffix of a file's kind: `.jsonl` of `train.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _split_of(path: Path, folder: Path) -> str:
    """Returns the split of a file: its name without a shard's number, or a folder on the way to it that is named after one."""
    stem = path.name.removesuffix(path.suffix).removesuffix(_suffix_of(path))
    shard = _SHARD.fullmatch(stem)
    name = shard[1] if shard else path.parent.name if stem.isdigit() else stem
    between = path.relative_to(folder).parts[:-1]
    return name if name in SPLITS else next((part for part in reversed(between) if part in SPLITS), name)


def _read(files: Sequence[Path], folder: Path) -> Dataset:
    """Reads files of one split and kind, whose paths may lead from `folder` or from the files' own folders."""
    by_home: dict[Path, list[Path]] = {}
    for path in files:
        by_home.setdefault(path.parent, []).append(path)
    parts = [_load(its) for its in by_home.values()]
    homes = [[home.absolute(), folder.absolute()] for home in by_home]
    if len(parts) == 1:
        return _with_absolute_paths(parts[0], homes)
    from datasets import concatenate_datasets

    numbered = [part.add_column(_HOME, [number] * len(part)) for number, part in enumerate(parts)]
    try:
        return _with_absolute_paths(concatenate_datasets(numbered), homes)
    except ValueError as error:  # features that cannot be aligned
        raise ValueError(f"the files of {', '.join(map(str, by_home))} have different columns: {error}") from error


def _load(files: Sequence[Path]) -> Dataset:
    """Reads files of the same suffix."""
    from datasets import load_dataset

    named = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    suffix = _suffix_of(files[0])
    kind = KINDS.get(suffix)
    if kind is None:
        raise ValueError(f"{named} has an unknown file type: give a {', '.join(KINDS)} file")
    _note_copy(files)
    if kind == "json":
        try:
            return load_json(files, _fingerprint(files))
        except ValueError as error:
            raise ValueError(f"{named} cannot be read as json: {error}") from error
    try:
        # A path is a pattern to `datasets`. By the name, its cache knows a file that was replaced and has its old time.
        patterns = [glob.escape(str(path.absolute())) for path in files]
        options = _text_options(files, suffix) if kind == "csv" else {}
        rows = load_dataset(kind, _fingerprint(files), data_files=patterns, split="train", **options)
    except Exception as error:  # pyarrow's, pandas', datasets' and, of an empty file, a StopIteration
        reason = error.__cause__ or error
        message = f"{type(reason).__name__}: {reason}" if str(reason) else "it has no rows"
        raise ValueError(f"{named} cannot be read as {kind}: {message}") from error
    return rows


def _note_copy(files: Sequence[Path]) -> None:
    """Logs one line before many files are copied: `datasets` reads rows at random from Arrow files of its own."""
    from datasets import config

    size = sum(path.stat().st_size for path in files) / 2**30
    if size >= LARGE_GIB:
        logger.warning(
            "the rows of %d file(s), %.1f GiB, are copied into %s, once as long as the files stay the same; "
            "HF_DATASETS_CACHE names another folder",
            len(files),
            size,
            config.HF_DATASETS_CACHE,
        )


def _text_options(files: Sequence[Path], suffix: str) -> dict[str, Any]:
    """Returns options by which each cell of a table is the text that is written: `007`, `None` and an empty cell as well."""
    import pandas as pd
    from datasets import Features, Value

    separator = "\t" if suffix == ".tsv" else ","
    names = dict.fromkeys(name for path in files for name in pd.read_csv(path, sep=separator, nrows=0).columns)
    features = Features({name: Value("string") for name in names})
    return {"sep": separator, "keep_default_na": False, "features": features}


def _fingerprint(files: Sequence[Path]) -> str:
    """Returns a name of the files' present state."""
    states = [
        (str(path.absolute()), (stat := path.stat()).st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path in files
    ]
    return hashlib.blake2b(repr(states).encode(), digest_size=8).hexdigest()


def _with_absolute_paths(rows: Dataset, homes: Sequence[Sequence[Path]]) -> Dataset:
    """Makes rows return absolute paths of media.

    Args:
        rows: With a column of numbers of `homes`, if there are several.
        homes: Folders that paths may lead from, in this order.
    """
    found = [name for name in rows.column_names if _may_have_media(name) and _has_media(rows, name, homes)]
    for name in () if is_encoded(rows) else found:
        rows = rows.cast_column(name, _undecoded(rows.features[name]))
    if not found and not is_encoded(rows):
        return rows.remove_columns(_HOME) if _HOME in rows.column_names else rows
    return rows.with_transform(partial(_absolute, frozenset(found), homes, is_encoded(rows)))


def _may_have_media(name: str) -> bool:
    return name in _CONVERSATIONS or bool(_MEDIA_COLUMN.search(name))


def _has_media(rows: Dataset, name: str, homes: Sequence[Sequence[Path]]) -> bool:
    """Returns True if the first relative paths of a column, as it is stored, lead to files from one of the folders."""
    seen = 0
    for chunk in rows.data.column(name).chunks:
        for start in range(0, len(chunk), CHUNK):
            values = chunk[start : start + CHUNK].to_pylist()
            values = [decoded(value) for value in values] if is_encoded(rows) else values
            for path in (path for value in values for path in _paths(name, value)):
                if any((folder / path).is_file() for folders in homes for folder in folders):
                    return True
                seen += 1
                if seen == MISSING_FILES:
                    return False
    return False


def _with_paths(name: str, value: Any, change: Callable[[str], str]) -> Any:
    """Returns a column's value with its relative paths of images and videos changed; in a conversation, those of its parts."""
    if name not in _CONVERSATIONS:
        return _changed(value, change)
    return _changed({"content": value}, change)["content"]


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        is_other = not value.strip() or len(value) > LONGEST_PATH or _NO_PATH.match(value)
        is_path = not is_other and Path(value).suffix.lower() in MEDIA and not Path(value).is_absolute()
        return change(value) if is_path else value
    if isinstance(value, Mapping) and value.get("bytes") is None:
        return {
            key: [_changed(part, change) if isinstance(part, Mapping) else part for part in item]
            if key == "content" and isinstance(item, list)
            else _changed(item, change)
            if key in _HOLDERS
            else item
            for key, item in value.items()
        }
    return [_changed(item, change) for item in value] if isinstance(value, list) else value


def _paths(name: str, value: Any) -> list[str]:
    """Returns the relative paths of images and videos in a column's value."""
    found: list[str] = []

    def keep(path: str) -> str:
        found.append(path)
        return path

    _with_paths(name, value, keep)
    return found


def _undecoded(feature: Any) -> Any:
    """Returns a feature with images and videos as `{"bytes": ..., "path": ...}`. `datasets` would search them in the cwd."""
    from datasets import Image, List, Video

    if isinstance(feature, Image | Video):
        return type(feature)(decode=False)
    return List(_undecoded(feature.feature)) if isinstance(feature, List) else feature


def _absolute(
    media: frozenset[str], homes: Sequence[Sequence[Path]], encoded: bool, batch: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Returns a batch of rows, decoded, with absolute paths in some columns."""
    numbers = batch.get(_HOME, [0] * len(next(iter(batch.values()))))
    if encoded:
        batch = {name: [decoded(value) for value in values] for name, values in batch.items() if name != _HOME}
    return {
        name: [
            _with_paths(name, value, partial(_place, homes[number]))
            for number, value in zip(numbers, values, strict=True)
        ]
        if name in media
        else values
        for name, values in batch.items()
        if name != _HOME
    }


def _place(folders: Sequence[Path], path: str) -> str:
    """Returns the path from the first folder that has the file, else from the first folder."""
    return str(next((folder / path for folder in folders if (folder / path).is_file()), folders[0] / path))
