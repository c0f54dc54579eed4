"""SHA-256 sums of a checkpoint's files, in the format that `sha256sum --check SHA256SUMS` reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUMS_FILE = "SHA256SUMS"
THREADS = 8
"""Files that are read at once; hashing leaves the interpreter to other threads."""


def file_sums(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Returns the path in `folder` → sum of each file, flushed to the disk first."""
    files = list(files)
    with ThreadPoolExecutor(THREADS) as pool:
        sums = pool.map(_flushed_sum, files)
        return {path.relative_to(folder).as_posix(): digest for path, digest in zip(files, sums, strict=True)}


def write_sums(folder: Path, sums: Mapping[str, str]) -> Path:
    """Writes `SHA256SUMS`."""
    file = folder / SUMS_FILE
    file.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), encoding="utf-8")
    return file


def damage_of(folder: Path, *, quick: bool = False) -> str:
    """Returns the first difference between a folder and its `SHA256SUMS` as text; empty if it is whole.

    With `quick` the files of weights only need to be there.
    """
    try:
        lines = (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except OSError:
        return f"{SUMS_FILE} is missing or cannot be read"
    except ValueError:
        return f"{SUMS_FILE} is not a list of sums"
    if not sums:
        return f"{SUMS_FILE} is empty"

    def difference(name: str) -> str:
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            return f"{SUMS_FILE} names {name}, which is outside"
        try:
            if quick and path.suffix == ".safetensors":
                return "" if path.stat().st_size else f"{name} is empty"
            return "" if _sum_of(path) == sums[name] else f"{name} differs from its SHA-256 sum"
        except OSError as error:
            return f"{name}: {error.strerror}"

    with ThreadPoolExecutor(THREADS) as pool:
        return next(filter(None, pool.map(difference, sorted(sums))), "")


def _flushed_sum(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _sum_of(path)


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
