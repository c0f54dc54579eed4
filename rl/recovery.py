"""Replaces a learner that has failed. Its ranks start again from the newest checkpoint; engines and reward workers stay."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rl.run_dir.checkpoint import LoopState, list_checkpoints, load_loop_state, newest_whole, set_aside
from rl.signals.stopping import STOP
from rl.types import LearnerFailed

if TYPE_CHECKING:
    from rl.run import Run

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class LearnerFailures:
    """Counts the failures of the learner, in all and in one place."""

    limit: int
    """Failures in one place after which the next ends the run."""
    total: int = 0
    """Failures in all."""
    version: int = -1
    """The latest policy version at which one has failed."""
    in_a_row: int = 0
    """Failures since then."""

    def add(self, version: int, failure: LearnerFailed) -> None:
        """Counts one.

        Raises:
            LearnerFailed: Training does not get past a policy version. Another start of the run may, with another Ray.
        """
        if version > self.version:
            self.version, self.in_a_row = version, 0
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise LearnerFailed(
                f"{failure}\nThe learner has failed {self.in_a_row} times at policy version {self.version} "
                f"(learner.max_failures = {self.limit}); the checkpoints up to here are good, and --resume auto goes on"
            )


def replace_learner(run: Run, failure: LearnerFailed) -> LoopState:
    """Starts the learner again, as often as `learner.max_failures` allows. Returns the loop's state there.

    Raises:
        LearnerFailed: It fails again and again.
        RuntimeError: It does not start for another reason.
        Stopped: A signal ends the run meanwhile.
    """
    while True:
        run.failures.add(run.version, failure)
        try:
            return _restart_from_checkpoint(run, failure)
        except LearnerFailed as again:
            failure = again


def _restart_from_checkpoint(run: Run, failure: LearnerFailed) -> LoopState:
    """Brings every part of the run back to the newest whole checkpoint."""
    run.batches.close()
    run.checkpoints.forget()
    checkpoint, state = _newest_state(run)
    logger.warning("%s\nThe learner starts again from %s; the engines stay.", failure, checkpoint or "the first policy")
    with STOP.raised():
        run.pool.detach()
        run.learner.restart(checkpoint or run.config.model, checkpoint)
        run.pool.connect(run.learner.connect)
        run.version = state.policy_version
        run.sync()
    run.batches.restart(state.step + 1, state.cursor)
    run.tracker.rewind(state.first_row)
    run.watch_anew()
    run.latest = dict(state.metrics)
    run.started = time.perf_counter() - state.seconds
    return state


def _newest_state(run: Run) -> tuple[Path | None, LoopState]:
    """Returns the newest whole checkpoint and the loop's state there; those that the run started from if there is no later one."""
    found = newest_whole(list_checkpoints(run.config.run_dir))
    if found is None:
        return run.origin
    state = load_loop_state(found, run.config)
    set_aside(run.config.run_dir, state.step)
    return found, state
