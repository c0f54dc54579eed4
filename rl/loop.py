"""train(): prompts go round a loop — generate, score, weigh, learn, sync, track, save."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from rewards.metrics import reward_metrics
from rewards.types import Score, Verifier
from rl.config import TrainConfig, check_config
from rl.distillation import teacher_metrics
from rl.hardware.memory import print_memory_plan
from rl.hardware.placement import resolve_placement
from rl.learner.microbatches import make_samples
from rl.objectives import Objective
from rl.run import Given, Run, open_run
from rl.run_dir.checkpoint import LoopState, save_checkpoint, starting_point
from rl.run_dir.html_report import write_report
from rl.run_dir.tracker import read_metrics
from rl.step_metrics import Stopwatch, rollout_metrics
from rl.task_metrics import task_metrics
from rl.types import RunStopped
from rollout.data.prompts import Rows
from rollout.data.selection import selected
from rollout.environments.episodes import MakeEnvironment
from rollout.types import CannotReplace

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run leaves.

    Attributes:
        run_dir: Config, metrics, samples and checkpoints.
        checkpoint: The last checkpoint; `from_pretrained` loads it.
        before: Metrics of the evaluation before the first step.
        after: Metrics of the evaluation after the last step.
    """

    run_dir: Path
    checkpoint: Path
    before: dict[str, float]
    after: dict[str, float]


def train(
    config: TrainConfig,
    *,
    prompts: Rows,
    reward: Verifier,
    eval_prompts: Rows | None = None,
    objective: Objective | None = None,
    environment: MakeEnvironment | None = None,
) -> RunResult:
    """Trains a policy, by SAPO unless told otherwise.

    Args:
        config: Every choice of the run.
        prompts: What to learn from: Prompts, `prompts_from(dataset, to_prompt)`, or a `mixture` of several tasks.
        reward: The verifier; `config.reward` replaces it.
        eval_prompts: Held-out prompts to measure on before and after; None measures nothing.
        objective: A loss of your own, with `sapo_loss`'s signature; default: the one that `config.objective` names.
        environment: Makes the environment of one episode, an object with `reset(prompt)` and `step(completion)`, as
            `rollout.environments.tools` has them; None where prompts are answered in one turn.

    Returns:
        Where the run is, and what it scored.

    Raises:
        ValueError: For whatever is wrong with config, prompts, reward or checkpoint; before any engine starts.
        RunStopped: If the run cannot go on in any useful way.
    """
    config = resolve_placement(config, Console())
    check_config(config)
    print_memory_plan(config, Console())
    start, state = starting_point(config)
    if state.step >= config.steps:
        return _result(config, start)
    with ExitStack() as stack:
        given = Given(
            prompts=selected(prompts, config.selection) if config.selection else prompts,
            reward=reward,
            eval_prompts=eval_prompts or [],
            objective=objective,
            environment=environment,
        )
        run = open_run(config, start, state, given, stack)
        stack.callback(_leave_report, config.run_dir)
        if state.step == 0 and run.evaluator.prompts:
            run.tracker.log(0, _unbroken(config, run, 0, partial(run.evaluator.run, 0, with_blind=True)))
        bar = stack.enter_context(run.tracker.progress(config.steps, state.step))
        version = state.policy_version
        started = time.perf_counter() - state.seconds
        for step in range(state.step + 1, config.steps + 1):
            watch = Stopwatch()
            run.rollouts.start(version, last_step=config.steps)
            batch = _unbroken(config, run, version, partial(run.rollouts.take, step))
            _report_errors(step, batch.scores)
            watch.lap("wait")
            samples = make_samples(batch.groups, batch.scores, config.advantage, version, batch.teacher_logprobs)
            _unbroken(config, run, version, run.pool.sleep)  # where engines share the learner's GPUs
            report = run.learner.step(samples)
            _require_agreement(config, step, report.metrics)
            watch.lap("learn")
            version += 1
            sync = _unbroken(config, run, version, partial(run.pool.sync, version, run.learner.sync))
            watch.lap("sync")
            tasks = [group.prompt.task for group in batch.groups]
            metrics = {
                **reward_metrics(batch.scores),
                **rollout_metrics(batch, version - 1),
                **task_metrics(tasks, batch.scores, samples, config.num_minibatches, config.eval.correct_at),
                **(teacher_metrics(batch.groups, batch.teacher_logprobs) if batch.teacher_logprobs else {}),
                **report.metrics,
                **sync,
                **watch.metrics(),
                **run.pool.metrics(),
                **(run.teacher.metrics() if run.teacher else {}),
                "time/elapsed": time.perf_counter() - started,
                "rollout/prompts_skipped": run.stream.skipped,
                "policy/version": version,
            }
            last = step == config.steps
            if last or _due(step, config.eval.every):
                metrics |= _unbroken(config, run, version, partial(run.evaluator.run, version, with_blind=last))
            run.tracker.log(step, metrics)
            if last or _due(step, config.samples_every):
                run.tracker.save_samples(f"step_{step:06d}", batch.groups, batch.scores)
            if last or _due(step, config.checkpoint_every):
                state = LoopState(
                    step=step,
                    policy_version=version,
                    cursor=run.rollouts.cursor(),
                    seconds=metrics["time/elapsed"],
                    config=run.plain,
                )
                checkpoint = save_checkpoint(
                    config.run_dir, state, run.learner.save, keep=config.keep_checkpoints, in_use=start
                )
            bar.advance(step, metrics)
    return _result(config, checkpoint)


def _leave_report(run_dir: Path) -> None:
    """Writes `report.html`; a page that fails must not take a run with it."""
    try:
        write_report(run_dir)
    except Exception as error:
        logger.warning("no report.html of %s: %s: %s", run_dir, type(error).__name__, error)


def _unbroken(config: TrainConfig, run: Run, version: int, do: Callable[[], T]) -> T:
    """What `do` returns. Where an engine is lost that cannot be replaced alone, all start anew, and it is done again.

    Args:
        config: The run's choices.
        run: Its learner has the weights, and waits for what is done.
        version: Of these weights.
        do: What needs engines.
    """
    for _ in range(config.rollout.max_failures):
        try:
            return do()
        except CannotReplace as error:
            logger.warning("all engines start anew: %s", error)
        run.rollouts.put_back()
        run.pool.restart()
        run.pool.connect(run.learner.connect)
        run.pool.sync(version, run.learner.sync)
        run.rollouts.start(version, last_step=config.steps)
    return do()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _report_errors(step: int, scores: Sequence[Sequence[Score]]) -> None:
    """Shows one of the step's failed verdicts of each verifier; a reward that fails on every completion ends the run."""
    flat = [score for group in scores for score in group]
    errors = [score for score in flat if score.error is not None]
    if errors and len(errors) == len(flat):
        raise RunStopped(f"step {step}: the reward failed on all {len(flat)} completions; the first: {errors[0].error}")
    for failed in dict.fromkeys(score.failed for score in errors):
        told = [score.error for score in errors if score.failed == failed]
        logger.warning("step %d: no verdict on %d of %d completions; one: %s", step, len(told), len(flat), told[0])


def _require_agreement(config: TrainConfig, step: int, metrics: Mapping[str, float]) -> None:
    """Stops the run when engine and learner no longer mean the same policy."""
    gap = metrics.get("rollout/logprob_gap_mean", 0.0)
    bound = config.rollout.gap_bound
    if not gap <= bound:
        raise RunStopped(
            f"step {step}: engine and learner disagree by {gap:.3g} nats per token on the same weights, more than "
            f"rollout.max_logprob_gap = {bound:g}; the checkpoints up to here are good. Either a sync did not arrive, or the "
            "engine's numerics differ: compare rollout.dtype with learner.dtype, or raise the bound if that is expected"
        )


def _result(config: TrainConfig, checkpoint: Path | None) -> RunResult:
    assert checkpoint is not None, "a finished run has a checkpoint"
    rows = [row for row in read_metrics(config.run_dir) if "eval/greedy" in row]
    scores = [{name: value for name, value in row.items() if name.startswith("eval/")} for row in rows]
    before, after = (scores[0], scores[-1]) if scores else ({}, {})
    return RunResult(run_dir=config.run_dir, checkpoint=checkpoint, before=before, after=after)
