"""The training loop: generate, score, learn, sync.

    stream ──Prompt──► engines ──Group──► reward ──Score──► make_samples ──Sample──► learner
   (rollout/data)   (rollout/pool)    (rewards/workers)     (rl/samples)          (rl/learner)
                         ▲                                                             │
                         └──────────────── weights, version + 1 ───────────────────────┘
                                            (rollout/weights)

`BatchProducer` (rl/generation) runs the first three in the background, at most `max_staleness` versions ahead of the learner. Only
weights flow back. The loss that the learner applies is in `rl/sapo.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rewards.types import Score, Verifier
from rl.config import TrainConfig
from rl.generation.batches import ScoredBatch
from rl.hardware.stopwatch import Stopwatch
from rl.metrics import step_metrics, step_time
from rl.objectives import Objective
from rl.preflight import TrainArguments, prepare
from rl.recovery import replace_learner
from rl.run import Run, open_run
from rl.run_dir.checkpoint import LoopState, checkpoint_steps, set_aside, starting_point
from rl.run_dir.rollback import Rollback, careful_changes, read_rollbacks, roll_back, step_before, with_rollbacks
from rl.run_dir.summary import read_result
from rl.samples import make_samples
from rl.signals.stopping import STOP
from rl.types import CollapseAhead, LearnerFailed, RunResult, RunStopped
from rollout.config import RolloutConfig
from rollout.data.prompts import Rows
from rollout.environments.environment import MakeEnvironment

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    *,
    prompts: Rows,
    reward: Verifier,
    eval_prompts: Rows | None = None,
    objective: Objective | None = None,
    environment: MakeEnvironment | None = None,
) -> RunResult:
    """Trains a policy, by SAPO unless the config names another objective.

    Args:
        config: Every choice of the run.
        prompts: Training prompts: a list of Prompts, `prompts_from(dataset, to_prompt)`, or a `mixture` of several tasks.
        reward: The verifier; `config.reward` replaces it.
        eval_prompts: Held-out prompts for evaluation before and after; None evaluates nothing.
        objective: A loss of your own with `sapo_loss`'s signature. Default: the one that `config.objective` names.
        environment: Makes the environment of one episode, an object with `reset(prompt)` and `step(completion)`, as in
            `rollout.environments`. None for single-turn prompts.

    Raises:
        ValueError: Config, prompts, reward or checkpoint cannot be used; before any engine starts.
        RunStopped: The run cannot make progress.
        LearnerFailed: The learner has failed again and again, `learner.max_failures` times without getting past a step.
        Stopped: A signal has ended the run; its last step is in a checkpoint.
    """
    arguments = TrainArguments(
        prompts=prompts, reward=reward, eval_prompts=eval_prompts or [], objective=objective, environment=environment
    )
    with STOP.handled():
        while True:
            try:
                return train_from_checkpoint(prepare(with_rollbacks(config)), arguments)
            except CollapseAhead as alarm:
                config = go_back(with_rollbacks(config), alarm)


def train_from_checkpoint(config: TrainConfig, arguments: TrainArguments) -> RunResult:
    """Trains from the checkpoint that the config names, or from the start.

    Raises:
        CollapseAhead: The watchdog raised an alarm, and the config asks for a rollback.
        ValueError: As `train`.
        RunStopped: As `train`.
        LearnerFailed: As `train`.
    """
    checkpoint, state = starting_point(config)
    if checkpoint is not None and state.step >= config.steps:
        return read_result(config.run_dir, checkpoint)
    set_aside(config.run_dir, state.step)
    with STOP.kept(), open_run(config, checkpoint, state, arguments) as run:
        while True:
            try:
                return read_result(config.run_dir, train_to_the_end(run, state))
            except LearnerFailed as failure:
                state = replace_learner(run, failure)


def train_to_the_end(run: Run, state: LoopState) -> Path:
    """Trains from a state on. Returns the last checkpoint."""
    with run.checkpoints.saved_at_a_stop():
        evaluate_first(run, state)
        run.started = time.perf_counter() - state.seconds
        for step in range(state.step + 1, run.config.steps + 1):
            one_step(run, step)
    return run.checkpoints.finish()


def evaluate_first(run: Run, state: LoopState) -> None:
    """Evaluates before the first step, or where a signal has cut the evaluation of the step that the run resumes from."""
    if state.step == 0 and (metrics := run.evaluate(with_blind=True)):
        run.tracker.log(0, metrics)
    if state.unlogged:
        metrics = state.unlogged | run.evaluate(with_blind=state.step == run.config.steps)
        run.log(state.step, metrics)
        run.watch(state.step, metrics)


def one_step(run: Run, step: int) -> None:
    """One step with all that follows it: evaluation, metrics, samples, checkpoint.

    A signal is raised before it, or while the batch is awaited or the policy evaluated.
    """
    config = run.config
    STOP.check()
    batch, metrics = train_step(run, step)
    if config.is_due(step, config.eval.every):
        run.note_position(step, unlogged=metrics)
        metrics |= run.evaluate(with_blind=step == config.steps)
    run.batches.start(run.version)  # the next batch is generated while this step is logged and saved
    run.log(step, metrics)
    run.watch(step, metrics)
    if config.is_due(step, config.samples_every):
        run.tracker.save_samples(f"step_{step:06d}", batch.groups, batch.scores)
    run.note_position(step)
    if run.checkpoints.is_due(step):
        run.checkpoints.save()


def train_step(run: Run, step: int) -> tuple[ScoredBatch, dict[str, float]]:
    """One step: takes a scored batch, learns from it, sends the new weights to the engines."""
    config, timer = run.config, Stopwatch()

    # Generate and score: in the background, as far ahead as max_staleness allows.
    run.batches.start(run.version)
    with STOP.raised():
        batch = run.batches.take(step)
    check_scores(step, batch.scores)
    timer.lap("wait")

    # Learn. Engines that share the learner's GPUs sleep meanwhile.
    samples = make_samples(batch.groups, batch.scores, config.advantage, run.version, batch.teacher_logprobs)
    run.pool.sleep()
    report = run.learner.step(samples)
    check_logprob_gap(step, report.metrics, config.rollout)
    timer.lap("learn")

    # Sync.
    run.version += 1
    sync_metrics = run.sync()
    timer.lap("sync")

    metrics = step_metrics(batch, samples, run.version - 1, config.num_minibatches, config.eval.correct_at)
    return batch, {**metrics, **report.metrics, **sync_metrics, **step_time(timer), **run.metrics()}


def go_back(config: TrainConfig, alarm: CollapseAhead) -> TrainConfig:
    """Rolls a run back to its newest checkpoint before the trouble began; its config then has more careful options.

    Raises:
        RunStopped: The run has gone back `watchdog.max_rollbacks` times already.
    """
    done, limit = len(read_rollbacks(config.run_dir)), config.watchdog.max_rollbacks
    if done >= limit:
        raise RunStopped(f"{alarm}; the run has gone back {done} times already (watchdog.max_rollbacks = {limit})")
    checkpoints = checkpoint_steps(config.run_dir)
    to = step_before(alarm.good_until, checkpoints, config.checkpoint_every)
    changes = careful_changes(config)
    rollback = Rollback(step=alarm.step, to=to, reason=str(alarm), changes=changes)
    roll_back(config.run_dir, rollback, checkpoints)
    what = ", ".join(f"{name} = {value:g}" for name, value in changes.items())
    logger.warning("back to step %d, with %s", to, what)
    return replace(config, resume="auto" if to else config.resume)


def check_scores(step: int, scores: Sequence[Sequence[Score]]) -> None:
    """Logs one failed score of each verifier.

    Raises:
        RunStopped: The reward failed on every completion.
    """
    flat = [score for group in scores for score in group]
    failures = [score for score in flat if score.problem is not None]
    if failures and len(failures) == len(flat):
        raise RunStopped(
            f"step {step}: the reward failed on all {len(flat)} completions; the first: {failures[0].problem}"
        )
    for verifier in dict.fromkeys(score.failed for score in failures):
        failed = [score.problem for score in failures if score.failed == verifier]
        logger.warning("step %d: no score for %d of %d completions; one: %s", step, len(failed), len(flat), failed[0])


def check_logprob_gap(step: int, metrics: Mapping[str, float], rollout: RolloutConfig) -> None:
    """Compares the log-probabilities of engine and learner on the same weights.

    Raises:
        RunStopped: They differ by more than `rollout.max_logprob_gap`.
    """
    gap, bound = metrics.get("rollout/logprob_gap_mean", 0.0), rollout.gap_bound
    if not gap <= bound:
        raise RunStopped(
            f"step {step}: engine and learner disagree by {gap:.3g} nats per token on the same weights, more than "
            f"rollout.max_logprob_gap = {bound:g}; the checkpoints up to here are good. Either a sync did not arrive, or the "
            "engine's numerics differ: compare rollout.dtype with learner.dtype, or raise the bound if that is expected"
        )
