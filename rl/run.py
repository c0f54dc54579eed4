"""Everything that a run owns, opened before its first step: what is cheap and likely to be wrong comes first."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from policies.loading import load_processor, vision_token_ids
from rewards.loading import load_reward
from rewards.types import Verifier
from rewards.workers.runner import RewardRunner
from rl.config import TrainConfig, plain_config
from rl.evaluation.evaluator import Evaluator
from rl.generation.batches import Rollouts
from rl.learner.group import LearnerGroup
from rl.objectives import Objective, check_objective, choose_objective
from rl.preflight import first_prompts, try_reward
from rl.run_dir.checkpoint import LoopState
from rl.run_dir.tracker import Tracker
from rl.teacher import require_same_vocabulary, start_teacher
from rollout.cluster import local_ray
from rollout.data.mixture import MixedStream, Stream, open_stream
from rollout.data.prompts import Rows, readable
from rollout.engine.spec import EngineSpec
from rollout.environments.environment import MakeEnvironment
from rollout.environments.episodes import Episodes, try_environment
from rollout.pool.engine_pool import EnginePool
from rollout.pool.teacher import Teacher
from rollout.rendering import fits_context, limit_pixels
from rollout.types import Prompt
from rollout.weights.senders import choose_backend

if TYPE_CHECKING:
    from transformers import ProcessorMixin


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that one run owns."""

    plain: dict[str, Any]
    stream: Stream
    runner: RewardRunner
    learner: LearnerGroup
    pool: EnginePool
    teacher: Teacher | None
    rollouts: Rollouts
    evaluator: Evaluator
    tracker: Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The arguments of train()."""

    prompts: Rows
    reward: Verifier
    eval_prompts: Rows
    objective: Objective | None
    environment: MakeEnvironment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """What can be opened without an engine, and has been tried.

    Attributes:
        processor: The policy's.
        stream: Where prompts come from.
        held_out: What to evaluate on.
        runner: The reward.
        episodes: What plays an episode; None where prompts are answered in one turn.
    """

    processor: ProcessorMixin
    stream: Stream
    held_out: list[Prompt]
    runner: RewardRunner
    episodes: partial[Episodes] | None


def open_run(config: TrainConfig, checkpoint: Path | None, state: LoopState, given: Given, stack: ExitStack) -> Run:
    """Opens everything.

    Args:
        config: The run's choices.
        checkpoint: What it goes on from.
        state: The loop's state there.
        given: What else train() was given.
        stack: Closes it again.

    Raises:
        ValueError: For whatever is wrong with config, prompts, reward or checkpoint; before any engine starts.
    """
    backend = choose_backend(config.rollout, learner_gpus=config.learner.gpus)
    objective = given.objective or choose_objective(config)
    check_objective(objective, by_token=config.teacher.model is not None)
    model = checkpoint or config.model
    tried = _open_inputs(config, model, state, given, stack)

    stack.enter_context(local_ray())
    learner = LearnerGroup(config, model, checkpoint, backend, objective)
    stack.callback(learner.close)
    teacher = start_teacher(config, model, tried.processor)
    if teacher is not None:
        stack.callback(teacher.close)
    adapters_travel = config.lora.sync == "adapter"
    spec = EngineSpec(
        model=config.model if adapters_travel else model,
        config=config.rollout,
        backend=backend,
        banned_ids=tuple(vision_token_ids(tried.processor)),
        policy_version=state.policy_version,
        lora_rank=config.lora.rank if adapters_travel else 0,
        return_routed_experts=config.learner.routing_replay == "R3",
    )
    pool = EnginePool(spec, episodes=tried.episodes, gpus=learner.shared_gpus())
    stack.callback(pool.close)
    pool.connect(learner.connect)
    if adapters_travel:  # the engines have the policy that LoRA starts from
        pool.sync(state.policy_version, learner.sync)
    rollouts = Rollouts(
        config, tried.stream, pool, tried.runner, tried.processor, first_step=state.step + 1, teacher=teacher
    )
    stack.callback(rollouts.close)
    plain = plain_config(config)
    tracker = Tracker(config, plain, state.step)
    stack.callback(tracker.close)
    return Run(
        plain=plain,
        stream=tried.stream,
        runner=tried.runner,
        learner=learner,
        pool=pool,
        teacher=teacher,
        rollouts=rollouts,
        evaluator=Evaluator(config, tried.held_out, pool, tried.runner),
        tracker=tracker,
    )


def _open_inputs(config: TrainConfig, model: str | Path, state: LoopState, given: Given, stack: ExitStack) -> _Tried:
    """Opens prompts and reward, and tries both, and the environment, on one prompt of each task."""
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
    return _Tried(processor=processor, stream=stream, held_out=held_out, runner=runner, episodes=episodes)
