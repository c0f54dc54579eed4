"""Rollbacks: a run that is about to collapse goes back to an earlier checkpoint, with more careful options.

They are kept in `rollbacks.jsonl`. A run applies those of its folder whenever it starts, so that a resume, too, goes on with the
changed options.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rl.config import LearningOptions, RunOptions, with_option
from rl.run_dir.files import jsonl_line, reading, write_atomically

ROLLBACK_FILE = "rollbacks.jsonl"
ABANDONED_FILE = "abandoned.jsonl"
MASK_THRESHOLD = 0.1
"""Nats per token of the off-policy sequence mask that a rollback switches on."""
FEWER_UPDATES = 4
"""Factor by which a rollback divides the updates per step; at half of them a collapse goes on."""
SMALLER_STEPS = 2
"""Factor by which it divides the learning rate."""

C = TypeVar("C", bound=RunOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """One rollback."""

    step: int
    """Step of the alarm."""
    to: int
    """Step of the checkpoint; 0 for the policy that the run started from."""
    reason: str
    """The alarm."""
    changes: dict[str, Any]
    """Dotted name of an option → its new value."""


def read_rollbacks(run_dir: Path) -> list[Rollback]:
    """Returns the rollbacks of a run, in their order.

    Raises:
        ValueError: Their file cannot be read.
    """
    file = run_dir / ROLLBACK_FILE
    if not file.is_file():
        return []
    with reading(file):
        return [Rollback(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def with_rollbacks(config: C) -> C:
    """Returns the config with the changes of the rollbacks in its run's folder."""
    for rollback in read_rollbacks(config.run_dir):
        for name, value in rollback.changes.items():
            config = with_option(config, name, value)
    return config


def careful_changes(options: LearningOptions) -> dict[str, Any]:
    """Returns the next more careful options.

    The off-policy sequence mask is switched on, the updates per step become a quarter, and the learning rate a half: how far a step
    takes the policy depends on both.
    """
    rates = {name: getattr(options.optimizer, name) for name in ("learning_rate", "vision_learning_rate")}
    changes: dict[str, Any] = {f"optimizer.{name}": rate / SMALLER_STEPS for name, rate in rates.items() if rate}
    if not options.correction.off_policy_threshold:
        changes["correction.off_policy_threshold"] = MASK_THRESHOLD
    if options.num_minibatches > 1:
        changes["num_minibatches"] = max(1, options.num_minibatches // FEWER_UPDATES)
    return changes


def step_before(good_until: int, checkpoints: Collection[int], every: int) -> int:
    """Returns the step of the newest checkpoint before the trouble began, 0 for the policy that the run started from.

    If that checkpoint has been deleted, the oldest one that is left takes its place: its options are more careful now.

    Args:
        good_until: Last step before the trouble began.
        checkpoints: Steps of the checkpoints that are left.
        every: Steps between checkpoints; 0 if there are none on the way.
    """
    before = [step for step in checkpoints if step <= good_until]
    had_none = not every or good_until < every
    return max(before, default=0 if had_none else min(checkpoints, default=0))


def roll_back(run_dir: Path, rollback: Rollback, checkpoints: Mapping[int, Path]) -> None:
    """Makes the checkpoint of a rollback the newest of its run, and records the rollback.

    Later checkpoints are deleted. Later rows of `metrics.jsonl` stay in `abandoned.jsonl`.

    Args:
        run_dir: The run's folder.
        rollback: The rollback.
        checkpoints: Step → folder.
    """
    earlier = read_rollbacks(run_dir)
    _keep_abandoned(run_dir, rollback.to, len(earlier))
    # Recorded before the checkpoints go: a kill in between leaves a resume with the careful options from a later checkpoint.
    lines = [jsonl_line(asdict(each)) for each in (*earlier, rollback)]
    write_atomically(run_dir / ROLLBACK_FILE, "".join(lines))
    for step, folder in checkpoints.items():
        if step > rollback.to:
            shutil.rmtree(folder)


def _keep_abandoned(run_dir: Path, to: int, number: int) -> None:
    """Copies the rows that the resumed run drops, with the number of the rollback."""
    metrics = run_dir / "metrics.jsonl"
    rows: Sequence[dict[str, Any]] = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    with (run_dir / ABANDONED_FILE).open("a", encoding="utf-8") as file:
        file.writelines(jsonl_line({"rollback": number, **row}) for row in rows if row["step"] > to)
