"""Checkpoints: `checkpoints/step_N/`, each a folder that `from_pretrained` and vLLM load, plus what resuming needs."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Self

from rl.config import RunOptions, config_dict
from rl.config.checks import resumable_options
from rl.run_dir.files import reading
from rl.run_dir.rollback import read_rollbacks
from rl.run_dir.sums import SUMS_FILE, damage_of

logger = logging.getLogger(__name__)

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
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each metric."""
    unlogged: dict[str, float] = field(default_factory=dict)
    """Metrics of the step, if a signal has cut its evaluation; the resumed run makes it and logs them."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads the content of `loop.json`.

        Raises:
            ValueError: A value is of another kind, or the step is negative.
        """
        state = cls(**json.loads(text))
        kinds: dict[str, Any] = {"step": int, "policy_version": int, "seconds": int | float}
        kinds |= dict.fromkeys(("cursor", "config", "metrics", "unlogged"), dict)
        for name, kind in kinds.items():
            value = getattr(state, name)
            if not isinstance(value, kind) or isinstance(value, bool) or (name == "step" and value < 0):
                raise ValueError(f"{LOOP_FILE} has {name} = {value!r}")
        return state

    @property
    def first_row(self) -> int:
        """First step whose metrics are not written; 0 at the start."""
        return self.step + (not self.unlogged) if self.step else 0


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Lists the checkpoints of a run, oldest first."""
    found = (path for path in (run_dir / "checkpoints").glob("step_*") if path.name.removeprefix("step_").isdigit())
    return sorted((path for path in found if (path / LOOP_FILE).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Returns the step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


def checkpoint_steps(run_dir: Path) -> dict[int, Path]:
    """Returns step → folder of each checkpoint of a run, oldest first."""
    return {step_of(path): path for path in list_checkpoints(run_dir)}


def starting_point(options: RunOptions, *, quick: bool = False) -> tuple[Path | None, LoopState]:
    """Returns the checkpoint to resume, None for a new run, and the loop's state there.

    Args:
        options: Every choice of the run.
        quick: True to leave out the files of weights when the files of the checkpoint are compared with their sums.

    Raises:
        ValueError: `resume` names no checkpoint, a damaged one, or one of another config. Or `run_dir` holds a run and `resume` is
            None, or it holds later checkpoints than the one to resume.
    """
    checkpoint, found = find_checkpoint(options.run_dir, options.resume, quick=quick), list_checkpoints(options.run_dir)
    if checkpoint is not None:
        state = load_loop_state(checkpoint, options)
        # The run would overwrite or delete the later checkpoints.
        if options.resume != "auto" and found and step_of(found[-1]) > state.step:
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


def find_checkpoint(run_dir: Path, resume: str | None, *, quick: bool = False) -> Path | None:
    """Finds the checkpoint that `--resume` names.

    Args:
        run_dir: The run's folder.
        resume: `"auto"` for the newest whole checkpoint of `run_dir`, None without checkpoints. Or a checkpoint's folder. Or the
            folder of a run, for its newest whole checkpoint.
        quick: As in `starting_point`.

    Raises:
        ValueError: The folder is no checkpoint, or it is damaged.
    """
    if resume is None:
        return None
    if resume == "auto":
        return newest_whole(list_checkpoints(run_dir), quick=quick)
    folder = Path(resume)
    if (folder / LOOP_FILE).is_file():
        if damage := damage_of(folder, quick=quick):
            raise ValueError(f"--resume {resume}: {describe_damage(folder, damage)}; pass an earlier checkpoint")
        return folder
    if found := list_checkpoints(folder):
        return newest_whole(found, quick=quick)
    raise ValueError(
        f"--resume {resume}: no checkpoint there ({LOOP_FILE} is missing); pass a checkpoints/step_N folder"
    )


def newest_whole(checkpoints: Sequence[Path], *, quick: bool = False) -> Path | None:
    """Returns the newest checkpoint that is whole, and logs the damage of later ones; None without checkpoints.

    Raises:
        ValueError: All are damaged.
    """
    damages = []
    for folder in reversed(checkpoints):
        damage = damage_of(folder, quick=quick)
        if not damage:
            return folder
        damages.append(describe_damage(folder, damage))
        logger.warning("%s: the one before it is used", damages[-1])
    if damages:
        raise ValueError(f"no checkpoint is whole: {'; '.join(damages)}. Move them away to start from scratch")
    return None


def describe_damage(folder: Path, damage: str) -> str:
    """Returns a sentence on a damaged checkpoint."""
    if not (folder / SUMS_FILE).exists():
        return f"{folder} has no {SUMS_FILE}: an older version wrote it, or it is incomplete"
    return f"{folder} is damaged: {damage}"


def set_aside(run_dir: Path, after: int) -> None:
    """Renames the damaged checkpoints after a step from `step_N` to `damaged_step_N`: the run will write those steps again."""
    for folder in list_checkpoints(run_dir):
        if step_of(folder) > after:
            target = folder.with_name(f"damaged_{folder.name}")
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
            logger.warning("%s is now %s", folder.name, target.name)


def load_metrics(checkpoint: Path) -> dict[str, float]:
    """Returns the latest value of each metric when a checkpoint was written; empty if they cannot be read."""
    try:
        return dict(json.loads((checkpoint / LOOP_FILE).read_text())["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def load_loop_state(checkpoint: Path, options: RunOptions) -> LoopState:
    """Reads a checkpoint's loop state.

    Args:
        checkpoint: A `step_N` folder.
        options: Every choice of the run that resumes. An option that the checkpoint's config lacks had its first default there.

    Raises:
        ValueError: The checkpoint's config differs in a choice that changes what a step learns.
    """
    with reading(checkpoint / LOOP_FILE):
        state = LoopState.from_json((checkpoint / LOOP_FILE).read_text())
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
    declared = {option.name: option for cls in library for option in fields(cls)}
    defaults: dict[str, Any] = {}
    for name, option in declared.items():
        if is_dataclass(section := getattr(config, name)):
            defaults[name] = _first_defaults(section)
        elif option.default is not MISSING:
            defaults[name] = json.loads(json.dumps(option.default, default=str))
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
