"""Opens and tries prompts, reward and environment before any engine starts: mistakes show in seconds.

Also loaded for `--help` and mistyped options, so torch and Ray are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rewards.loading import load_function, load_reward
from rewards.trial.dry_run import dry_run
from rewards.trial.references import check_references
from rewards.types import Verifier
from rewards.workers.runner import RewardRunner
from rl.config import RewardOptions, TrainConfig, check_config
from rl.hardware.cores import with_threads
from rl.hardware.kv_cache import derive_kv_cache
from rl.hardware.placement import resolve_placement, with_options
from rl.hardware.precision import derive_dtypes
from rl.run_dir.checkpoint import starting_point
from rl.run_dir.files import reading
from rl.run_dir.rollback import with_rollbacks
from rollout.config import RolloutConfig
from rollout.data.mixture import MixedStream, Stream, open_stream, rounds, shrunk, sources_of
from rollout.data.prompts import Accept, Rows, readable
from rollout.data.selection import read_selection, selected
from rollout.types import Prompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from rl.objectives import Objective
    from rollout.environments.environment import MakeEnvironment
    from rollout.environments.episodes import Episodes

NUM_REFERENCES = 64
"""Most reference answers of each source that are scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainArguments:
    """The arguments of `train()` besides the config."""

    prompts: Rows
    reward: Verifier
    eval_prompts: Rows
    objective: Objective | None
    environment: MakeEnvironment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Processor, reward and environment of a model: what training and evaluation open before the engines."""

    processor: ProcessorMixin
    """The policy's processor, with the engines' pixel limits."""
    accept: Accept
    """Gives the reason why a prompt does not fit the engines; None if it fits."""
    runner: RewardRunner
    """The reward's processes."""
    make_environment: MakeEnvironment | None
    """Makes the environment of one episode; None for single-turn prompts."""
    rollout: RolloutConfig
    """The engines' options."""

    def episodes(self) -> partial[Episodes] | None:
        """Makes the player of multi-turn episodes; None for single-turn prompts."""
        from rollout.environments.episodes import Episodes

        if self.make_environment is None:
            return None
        return partial(Episodes, self.make_environment, self.processor, self.rollout)

    def as_seen(self, prompts: Rows) -> Rows:
        """Returns the prompts with pictures no larger than the policy sees them. An environment, which may zoom, gets all."""
        from rollout.rendering import size_seen

        return prompts if self.make_environment else shrunk(prompts, partial(size_seen, self.processor))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """The inputs of a training run, opened and tried."""

    inputs: Inputs
    stream: Stream
    """Training prompts, at the position of the resumed checkpoint."""
    held_out: Sequence[Prompt]
    """Evaluation prompts."""


def check_options(config: TrainConfig) -> None:
    """Checks all that depends on options alone, in seconds: a recipe may spend minutes before it calls `train()`.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    config = resolve_placement(with_rollbacks(config))
    config = with_options(config, derive_dtypes(config.learner, config.rollout))
    check_config(config)
    from rl.objectives import choose_objective  # torch, after the checks that need no torch

    choose_objective(config)
    starting_point(config, quick=True)
    if config.reward:
        load_reward(config.reward)
    if config.after_checkpoint:
        load_function(config.after_checkpoint, kind="hook")
    if config.selection:
        read_selection(config.selection)


def prepare(config: TrainConfig) -> TrainConfig:
    """Derives placement, precision, threads, caches and what makes the run fit, checks the config, prints the memory plan.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    from rl.hardware.fitting import fit_to_gpus

    console = Console()
    config = resolve_placement(config, console)
    derived = derive_dtypes(config.learner, config.rollout)
    derived += derive_kv_cache(with_options(config, derived))
    config = with_threads(with_options(config, derived), console, derived)
    check_config(config)
    return fit_to_gpus(config, console)


def open_run_inputs(
    config: TrainConfig, model: str | Path, cursor: dict[str, Any], arguments: TrainArguments, stack: ExitStack
) -> RunInputs:
    """Opens the inputs of a training run and tries them on one prompt of each task.

    Args:
        config: Every choice of the run.
        model: The policy: a checkpoint on resume.
        cursor: Position of the prompt stream; empty for a new run.
        arguments: The arguments of `train()`.
        stack: Closes the inputs again.

    Raises:
        ValueError: Prompts, reward, environment or teacher cannot be used.
    """
    verifier = load_reward(config.reward) if config.reward else arguments.reward
    runner = stack.enter_context(open_runner(verifier, config, config.reward_cache))
    inputs = open_inputs(model, config.rollout, runner, arguments.environment)
    if config.teacher.model is not None:
        require_same_vocabulary(inputs.processor, config.teacher.model)
    prompts = selected(arguments.prompts, config.selection) if config.selection else arguments.prompts
    prompts = inputs.as_seen(prompts)
    stream = open_stream(
        prompts,
        batch_size=config.prompts_per_step,
        num_minibatches=config.num_minibatches,
        seed=config.seed,
        accept=inputs.accept,
    )
    if isinstance(stream, MixedStream):
        Console().print(stream.plan(), highlight=False, soft_wrap=True)
    if cursor:
        with reading("the saved prompt order"):
            stream.restore(cursor)
    held_out = list(islice(readable(inputs.as_seen(arguments.eval_prompts), inputs.accept), config.eval.num_prompts))
    first = first_prompts(prompts, inputs.accept)
    references = config.check_references and arguments.environment is None
    try_reward(inputs.runner, prompts, first, references=references)
    try_episode(inputs, first[0])
    return RunInputs(inputs=inputs, stream=stream, held_out=held_out)


def open_inputs(
    model: str | Path, rollout: RolloutConfig, runner: RewardRunner, make_environment: MakeEnvironment | None
) -> Inputs:
    """Opens a model's processor; nothing is tried yet.

    Args:
        model: A folder or hub name.
        rollout: The engines' options: pixel limits and lengths.
        runner: The reward's processes.
        make_environment: Makes the environment of one episode; None for single-turn prompts.

    Raises:
        ValueError: There is no such model, or its processor lacks a limit.
    """
    from policies.loading import load_processor
    from rollout.rendering import fits_context, limit_pixels

    processor = limit_pixels(load_processor(model), rollout)
    accept = fits_context(
        processor,
        max_model_len=rollout.max_model_len,
        max_tokens=rollout.max_tokens,
        max_images=rollout.max_images,
        max_videos=rollout.max_videos,
    )
    return Inputs(processor=processor, accept=accept, runner=runner, make_environment=make_environment, rollout=rollout)


def open_runner(verifier: Verifier, options: RewardOptions, num_cached: int = 0) -> RewardRunner:
    """Starts the reward's processes.

    Args:
        verifier: The reward.
        options: Their number and limits.
        num_cached: Scores that each process caches.
    """
    return RewardRunner(
        verifier,
        num_workers=options.reward_workers,
        timeout=options.reward_timeout,
        memory_gib=options.reward_memory_gib,
        num_cached=num_cached,
    )


def first_prompts(prompts: Rows, accept: Accept) -> list[Prompt]:
    """Returns the first usable prompt of each source.

    Raises:
        ValueError: A source has none.
    """
    found = {name: next(readable(source, accept), None) for name, source in sources_of(prompts).items()}
    for name, prompt in found.items():
        if prompt is None:
            of_task = f" of task {name!r}" if name else ""
            raise ValueError(f"no prompt{of_task} can be used: the warnings above name each row and the reason")
    return [prompt for prompt in found.values() if prompt is not None]


def try_reward(runner: RewardRunner, prompts: Rows, first: Sequence[Prompt], *, references: bool) -> None:
    """Tries the reward of each task on made-up responses.

    Args:
        runner: The reward's processes.
        prompts: The run's prompts.
        first: One prompt of each source.
        references: Also scores reference answers; see `rewards.trial.references`.

    Raises:
        ValueError: The reward fails, or accepts no reference answer of a task.
    """
    for prompt in first:
        dry_run(runner, prompt)
    if references:
        check_references(runner, rounds(prompts, NUM_REFERENCES))


def try_episode(inputs: Inputs, prompt: Prompt) -> None:
    """Plays a first turn, if there is an environment.

    Raises:
        ValueError: The environment fails.
    """
    if inputs.make_environment is not None:
        from rollout.environments.episodes import try_environment

        limit = inputs.rollout.environment_timeout
        try_environment(inputs.make_environment, prompt, inputs.processor, limit=limit)


def require_same_vocabulary(processor: ProcessorMixin, teacher: str) -> None:
    """Checks that every token means the same to student and teacher.

    Args:
        processor: The student's processor.
        teacher: A folder or hub name.

    Raises:
        ValueError: There is no such model, or its tokens differ; names how many, and the first one.
    """
    from policies.loading import load_processor, supported_model

    student_ids = processor.tokenizer.get_vocab()
    teacher_ids = load_processor(supported_model(teacher)).tokenizer.get_vocab()
    tokens = student_ids.keys() | teacher_ids.keys()
    different = sorted(token for token in tokens if student_ids.get(token) != teacher_ids.get(token))
    if different:
        first = different[0]
        raise ValueError(
            f"teacher.model = {teacher} has another vocabulary than the student: {len(different)} tokens differ, the first is "
            f"{first!r} ({_id_name(teacher_ids.get(first))} there, {_id_name(student_ids.get(first))} here): a teacher's "
            "log-probabilities are of the student's tokens; use one of the same family"
        )


def _id_name(token_id: int | None) -> str:
    return "no token" if token_id is None else f"id {token_id}"
