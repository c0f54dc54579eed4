"""train(): prompts go round a loop — generate, score, weigh, learn, sync, track, save."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from policies.loading import load_processor, vision_token_ids
from rewards.loading import load_reward
from rewards.metrics import reward_metrics
from rewards.runner import RewardRunner
from rewards.types import Score, Verifier
from rl.batching import make_samples
from rl.checkpoint import LoopState, save_checkpoint, starting_point
from rl.config import TrainConfig, check_config, plain_config
from rl.distillation import teacher_metrics
from rl.evaluate import Evaluator
from rl.learner_group import LearnerGroup
from rl.memory import print_memory_plan
from rl.objectives import Objective, check_objective, choose_objective
from rl.placement import settle
from rl.report import write_report
from rl.rollouts import Batch, Rollouts, has_variance
from rl.task_metrics import task_metrics
from rl.teacher import require_same_vocabulary, start_teacher
from rl.tracking import Tracker, read_metrics
from rl.trial import first_prompts, try_reward
from rl.types import RunStopped
from rollout.episodes import Episodes, MakeEnvironment, try_environment
from rollout.mixture import MixedStream, Stream, open_stream
from rollout.pool import RolloutPool
from rollout.prompts import Rows, readable
from rollout.rendering import fits_context, limit_pixels
from rollout.selection import selected
from rollout.teacher import Teacher
from rollout.types import CannotReplace, sampled_mask, token_versions
from rollout.weight_transfer import choose_backend

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
            `rollout.environments` has them; None where prompts are answered in one turn.

    Returns:
        Where the run is, and what it scored.

    Raises:
        ValueError: For whatever is wrong with config, prompts, reward or checkpoint; before any engine starts.
        RunStopped: If the run cannot go on in any useful way.
    """
    config = settle(config, Console())
    check_config(config)
    print_memory_plan(config, Console())
    start, state = starting_point(config)
    if state.step >= config.steps:
        return _result(config, start)
    with ExitStack() as stack:
        given = _Given(
            prompts=selected(prompts, config.selection) if config.selection else prompts,
            reward=reward,
            eval_prompts=eval_prompts or [],
            objective=objective,
            environment=environment,
        )
        run = _prepare(config, start, state, given, stack)
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
            metrics = {
                **reward_metrics(batch.scores),
                **rollout_metrics(batch, version - 1),
                **task_metrics(
                    [group.prompt.task for group in batch.groups],
                    batch.scores,
                    samples,
                    config.num_minibatches,
                    config.eval.correct_at,
                ),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Everything that one run owns."""

    plain: dict[str, Any]
    stream: Stream
    runner: RewardRunner
    learner: LearnerGroup
    pool: RolloutPool
    teacher: Teacher | None
    rollouts: Rollouts
    evaluator: Evaluator
    tracker: Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """The arguments of train()."""

    prompts: Rows
    reward: Verifier
    eval_prompts: Rows
    objective: Objective | None
    environment: MakeEnvironment | None


def _prepare(config: TrainConfig, checkpoint: Path | None, state: LoopState, given: _Given, stack: ExitStack) -> _Run:
    """Opens everything, what is cheap and likely to be wrong first; `stack` closes it again."""
    backend = choose_backend(config.rollout, learner_gpus=config.learner.gpus)
    objective = given.objective or choose_objective(config)
    check_objective(objective, by_token=config.teacher.model is not None)
    model = checkpoint or config.model
    processor = limit_pixels(load_processor(model), config.rollout)
    if config.teacher.model is not None:
        require_same_vocabulary(processor, config.teacher.model)
    accept = fits_context(
        processor,
        max_model_len=config.rollout.max_model_len,
        max_tokens=config.rollout.max_tokens,
        max_images=config.rollout.max_images,
        max_videos=config.rollout.max_videos,
    )
    stream = open_stream(
        given.prompts,
        batch_size=config.prompts_per_step,
        num_minibatches=config.num_minibatches,
        seed=config.seed,
        accept=accept,
    )
    if isinstance(stream, MixedStream):
        Console().print(stream.plan(), highlight=False, soft_wrap=True)
    if state.cursor:
        stream.restore(state.cursor)
    held_out = list(islice(readable(given.eval_prompts, accept), config.eval.num_prompts))
    verifier = load_reward(config.reward) if config.reward else given.reward
    runner = stack.enter_context(
        RewardRunner(
            verifier,
            num_workers=config.reward_workers,
            timeout=config.reward_timeout,
            memory_gib=config.reward_memory_gib,
            num_cached=config.reward_cache,
        )
    )
    first = first_prompts(given.prompts, accept)
    try_reward(runner, given.prompts, first, references=config.check_references and given.environment is None)
    episodes = None
    if given.environment is not None:
        try_environment(given.environment, first[0], processor, limit=config.rollout.environment_timeout)
        episodes = partial(Episodes, given.environment, processor, config.rollout)

    stack.enter_context(local_ray())
    learner = LearnerGroup(config, model, checkpoint, backend, objective)
    stack.callback(learner.close)
    teacher = start_teacher(config, model, processor)
    if teacher is not None:
        stack.callback(teacher.close)
    adapters_travel = config.lora.sync == "adapter"
    pool = RolloutPool(
        config.model if adapters_travel else model,
        config.rollout,
        backend=backend,
        banned_ids=vision_token_ids(processor),
        policy_version=state.policy_version,
        lora_rank=config.lora.rank if adapters_travel else 0,
        tell_experts=config.learner.routing_replay == "R3",
        episodes=episodes,
        gpus=learner.shared_gpus(),
    )
    stack.callback(pool.close)
    pool.connect(learner.connect)
    if adapters_travel:  # the engines have the policy that LoRA starts from
        pool.sync(state.policy_version, learner.sync)
    rollouts = Rollouts(config, stream, pool, runner, processor, first_step=state.step + 1, teacher=teacher)
    stack.callback(rollouts.close)
    plain = plain_config(config)
    tracker = Tracker(config, plain, state.step)
    stack.callback(tracker.close)
    return _Run(
        plain=plain,
        stream=stream,
        runner=runner,
        learner=learner,
        pool=pool,
        teacher=teacher,
        rollouts=rollouts,
        evaluator=Evaluator(config, held_out, pool, runner),
        tracker=tracker,
    )


def _unbroken(config: TrainConfig, run: _Run, version: int, do: Callable[[], T]) -> T:
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


@contextmanager
def local_ray() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names or that is joined already; else runs Ray on this machine for as long as needed."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(address=os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


class Stopwatch:
    """Seconds of the phases of one step, one behind the other."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self._seconds[phase] = now - self._last
        self._last = now

    def metrics(self) -> dict[str, float]:
        """`time/<phase>` and `time/step` in seconds, and `time/learner_idle`, the share of the step in which nothing is learnt."""
        seconds = {f"time/{phase}": value for phase, value in self._seconds.items()}
        step = self._last - self._begin
        return {**seconds, "time/step": step, "time/learner_idle": 1 - self._seconds["learn"] / step}


def rollout_metrics(batch: Batch, policy_version: int) -> dict[str, float]:
    """How long responses are and took, how old, and how many groups can teach anything.

    Args:
        batch: What the step learns from.
        policy_version: The learner's, before it learns.

    Returns:
        `rollout/response_tokens` (mean, sampled ones), `rollout/turns` (mean, of episodes), `rollout/truncated` (share cut at
        a limit), `rollout/groups_without_variance` (share whose rewards are all equal), `rollout/refills` (groups set aside for
        others), `rollout/staleness` (mean over tokens, in versions), `rollout/tokens_per_second` while generating, and
        `time/generate` and `time/score` in seconds.
    """
    completions = [completion for group in batch.groups for completion in group.completions]
    versions = np.concatenate([token_versions(completion)[sampled_mask(completion)] for completion in completions])
    turns = [len(completion.turns) for completion in completions if completion.turns is not None]
    return {
        "rollout/response_tokens": len(versions) / len(completions),
        "rollout/truncated": float(np.mean([completion.finish_reason == "length" for completion in completions])),
        "rollout/groups_without_variance": float(np.mean([not has_variance(scores) for scores in batch.scores])),
        "rollout/refills": float(batch.num_refills),
        "rollout/staleness": float(np.mean(policy_version - versions)) if len(versions) else 0.0,
        "rollout/tokens_per_second": len(versions) / batch.seconds_to_generate,
        "time/generate": batch.seconds_to_generate,
        "time/score": batch.seconds_to_score,
        **({"rollout/turns": sum(turns) / len(turns)} if turns else {}),
    }


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
