"""Results and errors of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The outcome of `train()`."""

    run_dir: Path
    """Folder with config, metrics, samples and checkpoints."""
    checkpoint: Path
    """The last checkpoint; `from_pretrained` loads it."""
    before: dict[str, float]
    """Metrics of the evaluation before the first step."""
    after: dict[str, float]
    """Metrics of the evaluation after the last step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """The result of one learner step."""

    metrics: Mapping[str, float]
    """Scalars under `loss/`, `policy/`, `rollout/`, `time/` and `memory/`."""
    num_updates: int
    """Optimizer updates that were applied."""


class CollapseAhead(Exception):
    """The watchdog's alarm where it ends a run for a rollback. The message has the sign and what to try.

    Args:
        message: The message.
        step: Step of the alarm.
        good_until: Last step before the trouble began.
    """

    def __init__(self, message: str, *, step: int, good_until: int) -> None:
        super().__init__(message)
        self.step, self.good_until = step, good_until


class RunStopped(RuntimeError):
    """A run that cannot make progress; the message gives the reason and the remedy."""


class LearnerFailed(RuntimeError):
    """A process of the learner is of no use: it has died, hangs, or has broken weights. New ones may go on from a checkpoint."""
