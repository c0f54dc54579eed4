"""A rank's part of a checkpoint: its files, written at once or by a thread while training goes on, and their SHA-256 sums."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread

from policies.weight_files import TensorFile, write_files
from rl.run_dir.sums import file_sums

logger = logging.getLogger(__name__)

PARTS_FOLDER = ".parts"
"""Folder in a checkpoint that is being written. A rank's file there is `rank_N.writing`, then `.done` with sums or `.failed`."""


def write_part(folder: Path, rank: int, describe: Callable[[Path], None] | None, files: Iterable[TensorFile]) -> None:
    """Writes a rank's files, then `.parts/rank_N.done` with their sums.

    If a file cannot be written, `.parts/rank_N.failed` has the reason. Renaming a file that is there needs no room on a full disk.

    Args:
        folder: The checkpoint's folder, not yet with its name.
        rank: Number of the rank.
        describe: Writes what is not weights, on one rank.
        files: The files; all of them are taken, whatever fails.
    """
    part = folder / PARTS_FOLDER / f"rank_{rank}.writing"
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        if describe is not None:
            describe(folder)
        written = write_files(files, folder)
        if describe is not None:
            written += [path for path in folder.iterdir() if path.is_file() and path not in written]
        part.write_text(json.dumps(file_sums(folder, written)))
        state = "done"
    except Exception as error:  # whatever it is, training goes on without this checkpoint
        for _ in files:  # the other ranks gather beside it
            pass
        state = "failed"
        _try_to_write(part, f"rank {rank}: {type(error).__name__}: {error}")
    os.rename(part, part.with_suffix(f".{state}"))


def sums_of_parts(folder: Path, num_ranks: int) -> dict[str, str] | None:
    """Returns the sums of all ranks' files; None while a rank still writes.

    Raises:
        OSError: A rank could not write its files.
    """
    parts = folder / PARTS_FOLDER
    done, failed = list(parts.glob("*.done")), sorted(parts.glob("*.failed"))
    if len(done) + len(failed) < num_ranks:
        return None
    for part in failed:
        raise OSError(part.read_text() or f"{part.stem} could not write its files")
    return {name: digest for part in done for name, digest in json.loads(part.read_text()).items()}


def write_in_background(
    folder: Path, rank: int, describe: Callable[[Path], None] | None, files: Iterable[TensorFile]
) -> Thread:
    """Makes a rank's files, and starts a thread that writes them, as `write_part`; they are in host memory until it ends."""
    made = list(files)
    writing = Thread(target=write_part, args=(folder, rank, describe, made), name=f"checkpoint {folder.name}")
    writing.start()
    return writing


def _try_to_write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError:
        logger.warning("%s", text)
