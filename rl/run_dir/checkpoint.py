"""Checkpoints: `checkpoints/step_N/`, each a folder that `from_pretrained` and vLLM load, plus what resuming needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl.config import TrainConfig, plain_config
from rl.sft.config import SftConfig

LOOP_FILE = "loop.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """What the loop itself remembers between steps.

    Attributes:
        step: Steps done.
        policy_version: Version of the weights.
        cursor: Where the prompt stream stands, `PromptStream.state()`.
        seconds: Training time so far, for the clock of the learning curve.
        config: The run's choices, to compare with on resume.
    """

    step: int
    policy_version: int
    cursor: dict[str, Any]
    seconds: float
    config: dict[str, Any]


def save_checkpoint(
    run_dir: Path, state: LoopState, write: Callable[[Path], None], *, keep: int, in_use: Path | None = None
) -> Path:
    """Writes aside, then renames: a folder named `step_N` is whole, whenever the run was killed.

    Args:
        run_dir: The run's folder.
        state: The loop's state.
        write: Fills a folder with weights and trainer state.
        keep: How many checkpoints stay, the newest; 0 keeps all.
        in_use: Another one that stays: what this run goes on from, for an engine that is replaced loads it anew.

    Returns:
        The checkpoint's folder.
    """
    folder = run_dir / "checkpoints" / f"step_{state.step}"
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    (aside / LOOP_FILE).write_text(json.dumps(asdict(state), indent=1))
    _flush(aside)
    if folder.exists():
        _remove(folder)
    aside.rename(folder)
    _flush(folder.parent)
    for old in list_checkpoints(run_dir)[:-keep] if keep else []:
        if in_use is None or old.resolve() != in_use.resolve():
            _remove(old)
    return folder


def _remove(folder: Path) -> None:
    """Renames, then deletes: a kill half-way leaves nothing that goes by the name of a checkpoint."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = (run_dir / "checkpoints").glob("step_*")
    return sorted((path for path in found if (path / LOOP_FILE).is_file()), key=lambda path: int(path.name[5:]))


def starting_point(config: TrainConfig | SftConfig) -> tuple[Path | None, LoopState]:
    """The checkpoint to go on from, if any, and the loop's state there.

    Raises:
        ValueError: If `resume` names no checkpoint or one of another config, or if `run_dir` holds a run and `resume` is
            None, or later checkpoints than the one to resume.
    """
    checkpoint, plain = find_checkpoint(config.run_dir, config.resume), plain_config(config)
    found = list_checkpoints(config.run_dir)
    if checkpoint is not None:
        state = load_loop_state(checkpoint, plain)
        # Going on here would overwrite or prune work that somebody may still want.
        if found and int(found[-1].name.removeprefix("step_")) > state.step:
            raise ValueError(
                f"--resume {config.resume} goes back to step {state.step}, but {config.run_dir} holds {found[-1].name}: "
                "pass another --run-dir, or move the later checkpoints away"
            )
        return checkpoint, state
    if config.resume is None and found:
        raise ValueError(
            f"{config.run_dir} already holds a run ({found[-1].name}): pass --resume auto to go on, or another --run-dir"
        )
    return None, LoopState(step=0, policy_version=0, cursor={}, seconds=0.0, config=plain)


def find_checkpoint(run_dir: Path, resume: str | None) -> Path | None:
    """What `--resume` names.

    Args:
        run_dir: The run's folder.
        resume: `"auto"` is the newest checkpoint of `run_dir`, or None if there is none; else a checkpoint folder, or a run's
            folder, whose newest one it is.

    Raises:
        ValueError: If the folder is no checkpoint.
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


def load_loop_state(checkpoint: Path, config: dict[str, Any]) -> LoopState:
    """Reads a checkpoint's loop state.

    Args:
        checkpoint: A checkpoint folder.
        config: The choices of the run that resumes.

    Raises:
        ValueError: If the checkpoint was written under other choices, as far as they change what is learnt. An option that there
            was none of then had its default: whatever an option adds, its default is what was done before.
    """
    state = LoopState(**json.loads((checkpoint / LOOP_FILE).read_text()))
    defaults = plain_config(TrainConfig(model=""))
    was = _completed(state.config, {name: default for name, default in defaults.items() if name in config})
    different = [
        f"{name} = {now!r} (was {was!r})"
        for name, was, now in _differences(was, json.loads(json.dumps(config)))
        if name not in FREE_TO_CHANGE and name.split(".")[0] not in FREE_TO_CHANGE
    ]
    if different:
        raise ValueError(
            f"{checkpoint} is of another config: {', '.join(different)}; "
            "pass the old values, or start afresh with this checkpoint as --model"
        )
    return state


FREE_TO_CHANGE = frozenset(
    """
    run_dir steps resume checkpoint_every keep_checkpoints samples_every wandb eval eval_every reward_workers reward_timeout model
    check_references
    cold_start learner.threads learner.gpus learner.cpu_ranks learner.offload learner.microbatch_tokens learner.packing lora.sync
    learner.gradient_checkpointing placement rollout.num_engines rollout.gpus_per_engine rollout.threads_per_engine
    rollout.kv_cache_gib rollout.max_running rollout.engine_timeout rollout.request_timeout rollout.start_timeout
    rollout.max_failures
    rollout.gpu_memory_utilization rollout.weight_transfer rollout.max_logprob_gap
    teacher.model teacher.num_engines teacher.gpus_per_engine teacher.threads_per_engine teacher.kv_cache_gib
    teacher.gpu_memory_utilization teacher.max_batched_tokens
    """.split()
)
"""Choices that do not change what a step learns: how long, where, on what machine. The checkpoint itself stands for `model`
and for the `cold_start` that made it. A teacher's folder may have moved, and another teacher may take over."""


def _completed(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A config with the defaults of what it lacks; whatever a recipe has added stays."""
    whole = {**defaults, **config}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(whole[name], dict):
            whole[name] = _completed(whole[name], default)
    return whole


def _differences(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in sorted(was.keys() | now.keys()):
        a, b = was.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def _flush(folder: Path) -> None:
    """Asks the kernel to write a folder's files and entries to disk, so that a rename never overtakes its content."""
    for path in [folder, *folder.rglob("*")]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
