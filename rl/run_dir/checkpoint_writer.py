"""Writes a run's checkpoints while training goes on.

Training waits only until the ranks have copied their tensors into host memory. Their threads write the files. A thread here
adds state and sums, gives the checkpoint its name, and deletes older ones.

A checkpoint that cannot be written, as on a full disk, is tried again some steps later. Earlier ones stay.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Protocol

from rewards.loading import load_function
from rl.config import RunOptions
from rl.run_dir.checkpoint import LOOP_FILE, LoopState, list_checkpoints, load_metrics
from rl.run_dir.parts import PARTS_FOLDER, sums_of_parts
from rl.run_dir.sums import file_sums, write_sums
from rl.types import RunStopped

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
CLOSE_SECONDS = 30.0
"""Longest wait for the ranks at the end of a run, in seconds."""
LONGEST_PAUSE = 32
"""Most steps between two tries to write a checkpoint; the pause doubles with each failure."""
LAST_TRIES = 3
"""Tries to write the checkpoint that a run ends with."""
LAST_PAUSE_SECONDS = 2.0
"""Pause between them, in seconds."""


class SavesParts(Protocol):
    """The learner, or all its ranks."""

    num_ranks: int
    """Number of parts of a checkpoint."""

    def check(self) -> None:
        """Raises LearnerFailed if a rank has died: its part will never be whole."""

    def save(self, folder: Path, *, background: bool = ...) -> None:
        """Writes every rank's part of a checkpoint; with `background` it returns before that is done."""


class CheckpointWriter:
    """Writes checkpoints one at a time.

    Args:
        options: The run's folder, and how many checkpoints stay.
        learner: The learner.
        resumed: The checkpoint that the run started from, which stays: replaced engines load it again. None at the start.
    """

    def __init__(self, options: RunOptions, learner: SavesParts, resumed: Path | None) -> None:
        self.newest = resumed
        """The newest whole checkpoint."""
        self._noted: LoopState | None = None
        self._begun = 0  # the step of the last checkpoint that has not failed
        self._options, self._learner, self._resumed = options, learner, resumed
        self._after: Callable[[Path], object] | None = None
        if options.after_checkpoint:
            self._after = load_function(options.after_checkpoint, kind="hook")
        self._thread: Thread | None = None
        self._failure: Exception | None = None
        self._failures = self._retry_at = 0
        self._deadline, self._seconds = math.inf, 0.0

    def is_due(self, step: int) -> bool:
        """Returns True at the steps of a checkpoint, and where one that failed is tried again."""
        self._collect(wait=False)
        return self._options.is_due(step, self._options.checkpoint_every) or 0 < self._retry_at <= step

    def note(self, state: LoopState) -> None:
        """Notes the state after the learner's last step, for `save`."""
        self._noted = state

    def save(self) -> None:
        """Begins to write a checkpoint of the noted state, unless there is one."""
        if self._noted is not None and self._noted.step != self._begun:
            self.begin(self._noted)

    @contextmanager
    def saved_at_a_stop(self) -> Iterator[None]:
        """Saves the noted state if a signal ends the block."""
        try:
            yield
        except KeyboardInterrupt:
            self.save()
            raise

    def begin(self, state: LoopState) -> None:
        """Copies the learner's state and starts to write it. Waits for the checkpoint before, if it is not written yet."""
        started = time.perf_counter()
        self._collect(wait=True)
        self._state, self._begun = state, state.step
        folder = checkpoint_folder(self._options.run_dir, state.step)
        temporary = folder.with_name(f".{folder.name}.tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / PARTS_FOLDER).mkdir(parents=True)
        except OSError as error:
            self._plan_retry(error)
            return
        try:
            self._learner.save(temporary, background=self._options.background_checkpoints)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._thread = Thread(target=self._write, args=(temporary, folder, state), name=f"writes {folder.name}")
        self._thread.start()
        self._seconds = time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """Returns the seconds that training has waited for the last checkpoint, once; empty in other steps."""
        seconds, self._seconds = self._seconds, 0.0
        return {"time/checkpoint": seconds} if seconds else {}

    def finish(self) -> Path:
        """Waits for the last checkpoint and returns it; tries again if it could not be written.

        Raises:
            RunStopped: It could not be written.
        """
        self._collect(wait=True)
        for _ in range(LAST_TRIES - 1):
            if not self._failures:
                break
            time.sleep(LAST_PAUSE_SECONDS)
            self.begin(self._state)
            self._collect(wait=True)
        if self._failures or self.newest is None:
            raise RunStopped(
                f"the last checkpoint could not be written: what was learned after {self.newest or 'the start'} is lost; "
                "free space on the disk, and resume"
            )
        return self.newest

    def forget(self) -> None:
        """Ends the checkpoint that is being written, and forgets the noted state: the learner has failed."""
        self.close()
        self._noted, self._begun, self._deadline = None, 0, math.inf
        self._failures = self._retry_at = 0

    def close(self) -> None:
        """Waits for the checkpoint that is being written, but not for ranks that have died or hang."""
        self._deadline = time.monotonic() + CLOSE_SECONDS
        self._collect(wait=True)

    def _collect(self, *, wait: bool) -> None:
        """Takes the thread's result."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return
        self._thread.join()
        self._thread = None
        if self._failure is not None:
            self._plan_retry(self._failure)
            self._failure = None
        else:
            self._failures = self._retry_at = 0

    def _plan_retry(self, error: Exception) -> None:
        pause = min(2**self._failures, LONGEST_PAUSE)
        self._failures += 1
        self._begun = 0
        self._retry_at = self._state.step + pause
        logger.warning(
            "no checkpoint of step %d: %s; the next try is at step %d, and earlier checkpoints stay",
            self._state.step,
            error,
            self._retry_at,
        )

    def _write(self, temporary: Path, folder: Path, state: LoopState) -> None:
        """Completes a checkpoint in the thread."""
        try:
            while (sums := sums_of_parts(temporary, self._learner.num_ranks)) is None:
                if time.monotonic() > self._deadline:
                    raise OSError("the run ends, and its ranks have not written it")
                self._learner.check()
                time.sleep(POLL_SECONDS)
            complete(temporary, folder, state, sums)
        except Exception as error:  # as a full disk; the thread must not end without a word
            self._failure = error
            shutil.rmtree(temporary, ignore_errors=True)
            return
        self.newest = folder
        if (best := self._options.keep_best) and best not in state.metrics:
            logger.warning("keep_best = %s: step %d has no such metric so far", best, state.step)
        try:
            delete_old(self._options, in_use=self._resumed)
            if self._after is not None:
                self._after(folder)
        except Exception as error:  # the checkpoint is there, and training does not depend on what follows
            logger.warning("after %s: %s: %s", folder.name, type(error).__name__, error)


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return run_dir / "checkpoints" / f"step_{step}"


def complete(temporary: Path, folder: Path, state: LoopState, sums: dict[str, str]) -> None:
    """Adds state and sums to what the ranks have written, and gives the folder its name: a folder `step_N` is always whole.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    shutil.rmtree(temporary / PARTS_FOLDER)
    (temporary / LOOP_FILE).write_text(json.dumps(asdict(state), indent=1))
    write_sums(temporary, sums | file_sums(temporary, [temporary / LOOP_FILE]))
    _flush(temporary)
    if folder.exists():
        delete_checkpoint(folder)
    temporary.rename(folder)
    _flush_entry(folder.parent)


def delete_old(options: RunOptions, *, in_use: Path | None) -> None:
    """Deletes all checkpoints but the newest ones, the best one and the one in use."""
    if not options.keep_checkpoints:
        return
    found = list_checkpoints(options.run_dir)
    kept = {path.resolve() for path in found[-options.keep_checkpoints :]}
    kept |= {path.resolve() for path in (in_use, best_checkpoint(found, options.keep_best)) if path is not None}
    for path in found:
        if path.resolve() not in kept:
            delete_checkpoint(path)


def best_checkpoint(checkpoints: list[Path], metric: str | None) -> Path | None:
    """Returns the checkpoint where a metric was greatest, the newest of equal ones; None without any."""
    values = [(load_metrics(path).get(metric), path) for path in checkpoints] if metric else []
    known = [(value, index, path) for index, (value, path) in enumerate(values) if value is not None]
    return max(known)[2] if known else None


def delete_checkpoint(folder: Path) -> None:
    """Renames a checkpoint, then deletes it: a kill leaves no partial folder with a checkpoint's name."""
    temporary = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def _flush(folder: Path) -> None:
    """Flushes files and entries to disk, so that no rename reaches the disk before them."""
    for path in (folder, *folder.rglob("*")):
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
