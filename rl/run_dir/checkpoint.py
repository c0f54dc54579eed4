"""Checkpoints: `checkpoints/step_N/`, each a folder that `from_pretrained` and vLLM load, plus what resuming needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from rl.config import RunOptions, config_dict
from rl.config.checks import resumable_options
from rl.run_dir.rollback import read_rollbacks

LOOP_FILE = "loop.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """The loop's own state between two steps."""

    step: int
    """Steps done."""
    policy_version: int
    """Version of the weights."""
    cursor: dict[str, Any]
    """Position of the prompt stream, `PromptStream.state()`."""
    seconds: float
    """Training time so far, for the clock of the learning curve."""
    config: dict[str, Any]
    """Every choice of the run, to compare on resume."""


def save_checkpoint(
    run_dir: Path, state: LoopState, write: Callable[[Path], None], *, keep: int, in_use: Path | None = None
) -> Path:
    """Writes a checkpoint to a temporary folder and renames it: a folder named `step_N` is always whole.

    Args:
        run_dir: The run's folder.
        state: The loop's state.
        write: Fills a folder with weights and trainer state.
        keep: Number of checkpoints to keep, the newest ones; 0 keeps all.
        in_use: A checkpoint that also stays: the one that this run resumed from, which replaced engines load again.

    Returns:
        The checkpoint's folder.
    """
    folder = run_dir / "checkpoints" / f"step_{state.step}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    (temporary / LOOP_FILE).write_text(json.dumps(asdict(state), indent=1))
    _flush(temporary)
    if folder.exists():
        _remove(folder)
    temporary.rename(folder)
    _flush(folder.parent)
    for old in list_checkpoints(run_dir)[:-keep] if keep else []:
        if in_use is None or old.resolve() != in_use.resolve():
            _remove(old)
    return folder


def _remove(folder: Path) -> None:
    """Renames a checkpoint, then deletes it: a kill leaves no partial folder with a checkpoint's name."""
    temporary = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Lists the checkpoints of a run, oldest first."""
    found = (run_dir / "checkpoints").glob("step_*")
    return sorted((path for path in found if (path / LOOP_FILE).is_file()), key=lambda path: int(path.name[5:]))


def checkpoint_steps(run_dir: Path) -> dict[int, Path]:
    """Returns step → folder of each checkpoint of a run, oldest first."""
    return {int(path.name.removeprefix("step_")): path for path in list_checkpoints(run_dir)}


def starting_point(options: RunOptions) -> tuple[Path | None, LoopState]:
    """Returns the checkpoint to resume, None for a new run, and the loop's state there.

    Raises:
        ValueError: `resume` names no checkpoint, or one of another config. Or `run_dir` holds a run and `resume` is None, or
            it holds later checkpoints than the one to resume.
    """
    checkpoint, found = find_checkpoint(options.run_dir, options.resume), list_checkpoints(options.run_dir)
    if checkpoint is not None:
        state = load_loop_state(checkpoint, options)
        # The run would overwrite or delete the later checkpoints.
        if found and int(found[-1].name.removeprefix("step_")) > state.step:
            raise ValueError(
                f"--resume {options.resume} goes back to step {state.step}, but {options.run_dir} holds {found[-1].name}: "
                "pass another --run-dir, or move the later checkpoints away"
            )
        return checkpoint, state
    if options.resume is None and found:
        raise ValueError(
            f"{options.run_dir} already holds a run ({found[-1].name}): pass --resume auto to continue it, or another --run-dir"
        )
    return None, LoopState(step=0, policy_version=0, cursor={}, seconds=0.0, config=config_dict(options))


def find_checkpoint(run_dir: Path, resume: str | None) -> Path | None:
    """Finds the checkpoint that `--resume` names.

    Args:
        run_dir: The run's folder.
        resume: `"auto"` for the newest checkpoint of `run_dir`, None if it has none. Or a checkpoint's folder. Or the folder of a
            run, for its newest checkpoint.

    Raises:
        ValueError: The folder is no checkpoint.
    """
    if resume is None:
        return None
    if resume == "auto":
        return next(reversed(list_checkpoints(run_dir)), None)
    folder = Path(resume)
    if (folder / LOOP_FILE).is_file():
        return folder
    if newest := list_checkpoints(folder):
        return newest[-1]
    raise ValueError(
        f"--resume {resume}: no checkpoint there ({LOOP_FILE} is missing); pass a checkpoints/step_N folder"
    )


def load_loop_state(checkpoint: Path, options: RunOptions) -> LoopState:
    """Reads a checkpoint's loop state.

    Args:
        checkpoint: A `step_N` folder.
        options: Every choice of the run that resumes. An option that the checkpoint's config lacks had its first default there.

    Raises:
        ValueError: The checkpoint's config differs in a choice that changes what a step learns.
    """
    state = LoopState(**json.loads((checkpoint / LOOP_FILE).read_text()))
    # A rollback has changed options on purpose, and they replace those of the command line.
    resumable = resumable_options(options) | {name for each in read_rollbacks(options.run_dir) for name in each.changes}
    then = _with_defaults(state.config, _first_defaults(options))
    different = [
        f"{name} = {value!r} (was {old!r})"
        for name, old, value in _differences(then, config_dict(options))
        if name not in resumable and name.split(".")[0] not in resumable
    ]
    if different:
        raise ValueError(
            f"{checkpoint} is of another config: {', '.join(different)}; "
            "pass the old values, or start a new run with this checkpoint as --model"
        )
    return state


def _first_defaults(config: Any) -> dict[str, Any]:
    """The default of each option in the class that declares it first, as JSON has it; sections are nested.

    An option that is newer than a checkpoint had the effect of its first default there, whatever a recipe's default is now. Options
    that a recipe itself declares have none: a checkpoint without them is another recipe's.
    """
    library = [
        cls for cls in type(config).__mro__ if is_dataclass(cls) and cls.__module__.split(".")[0] in ("rl", "rollout")
    ]
    declared = {field.name: field for cls in library for field in fields(cls)}
    defaults: dict[str, Any] = {}
    for name, field in declared.items():
        if is_dataclass(section := getattr(config, name)):
            defaults[name] = _first_defaults(section)
        elif field.default is not MISSING:
            defaults[name] = json.loads(json.dumps(field.default, default=str))
    return defaults


def _with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A config, completed by the defaults of the options that it lacks."""
    whole = {**defaults, **config}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(whole[name], dict):
            whole[name] = _with_defaults(whole[name], default)
    return whole


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def _flush(folder: Path) -> None:
    """Flushes a folder's files and entries to disk, so that no rename reaches the disk before them."""
    for path in [folder, *folder.rglob("*")]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
