"""Samples each prompt several times from a checkpoint, scores the completions and stores them, for evaluation and pass rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import track

from policies.loading import supported_model, vision_token_ids
from rewards.check import find_reward
from rewards.loading import load_function
from rewards.trial.dry_run import dry_run
from rewards.types import Score, Verifier
from rl.data import prompts_of
from rl.evaluation.config import SamplingRunConfig, check_sampling_run, sampling_of
from rl.evaluation.results import CorrectnessRule, PromptResult, prompt_result
from rl.evaluation.store import AnswerStore, answer_identity, digest
from rl.hardware.cores import with_engine_threads
from rl.hardware.placement import DerivedOption, with_options
from rl.hardware.precision import engine_dtype
from rl.preflight import open_inputs, open_runner, try_episode
from rollout.cluster import local_ray
from rollout.data.media import UnreadablePrompt
from rollout.data.prompts import Accept, Rows, SkipLog, accepted, blind
from rollout.engine.spec import EngineSpec
from rollout.pool.engine_pool import EnginePool
from rollout.pool.seeds import request_seed
from rollout.types import Group, Prompt, Sampling
from rollout.weights.senders import choose_backend

SEED_STEP = -1
"""Step in the seeds: the same prompts get the same answers whenever they are sampled."""
LOOKAHEAD = 2
"""Prompts in progress, as a multiple of what the engines run at once: no prompt waits for the slowest of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAnswers:
    """The answers of a sampling run."""

    config: SamplingRunConfig
    run_dir: Path
    results: Sequence[PromptResult]
    """One for each answered prompt, in the order of the data."""
    rows: Sequence[int]
    """Row in the data of each result."""
    skipped: dict[int, str]
    """Row in the data → why its prompt was skipped."""
    num_sampled: int
    """Prompts sampled in this call; the others were finished before."""


def sample_and_score(config: SamplingRunConfig, name: str) -> SampledAnswers:
    """Samples and scores the prompts that have no answers yet, and returns all answers.

    Args:
        config: The options.
        name: The folder in runs/, if the config has no run_dir.

    Raises:
        ValueError: Config, data, reward or checkpoint cannot work; raised before any engine starts.
    """
    check_sampling_run(config)
    dtypes = engine_dtype(config.rollout, on_gpus=config.rollout.gpus_per_engine > 0)
    config = with_options(config, dtypes)
    reward = find_reward(config.reward)
    supported_model(config.model)
    identity = answer_identity(config)
    run_dir = config.run_dir or Path("runs") / name / f"{Path(config.model).name}-{digest(identity)}"
    prompts = prompts_of(config)
    prompts = prompts[: config.limit] if config.limit else prompts
    store = AnswerStore(run_dir, identity, pictures=config.pictures)
    remaining = RemainingPrompts(config, prompts, store.done)
    num_before = len(store.done)
    with ExitStack() as stack:
        for number, group, scores in _open_and_sample(config, reward, remaining, dtypes, stack):
            store.add(number, group, scores)
    results = _results(config, store, len(prompts))
    if not results:
        reasons = list(remaining.skipped.values()) or ["the data has no prompts"]
        raise ValueError(f"no prompt of {config.data} could be sampled; the first reason: {reasons[0]}")
    return SampledAnswers(
        config=config,
        run_dir=run_dir,
        results=[results[number] for number in sorted(results)],
        rows=sorted(results),
        skipped=remaining.skipped,
        num_sampled=len(store.done) - num_before,
    )


def _results(config: SamplingRunConfig, store: AnswerStore, num_prompts: int) -> dict[int, PromptResult]:
    """Returns the stored results of the first prompts, by row.

    Raises:
        ValueError: No score has the part that `config.correct` names.
    """
    correct = CorrectnessRule(at_least=config.correct.at_least, part=config.correct.part)
    results, parts = {}, set[str]()
    for row in store.rows():
        if row["row"] < num_prompts:
            results[row["row"]] = prompt_result(row, correct)
            parts.update(name for each in row["completions"] for name in each["parts"])
    if any(result.correct for result in results.values()):
        correct.require_part(parts)
    return results


@dataclass(slots=True)
class RemainingPrompts:
    """The prompts without answers, drawn one by one; notes why prompts are skipped."""

    config: SamplingRunConfig
    prompts: Rows
    done: set[int]
    skipped: dict[int, str] = field(default_factory=dict)
    log: SkipLog = field(default_factory=SkipLog)

    def __len__(self) -> int:
        return sum(number not in self.done for number in range(len(self.prompts)))

    def draw(self, accept: Accept) -> Iterator[tuple[int, Prompt]]:
        """Yields row and prompt of every remaining prompt that can be sampled; skips the others."""
        for number in range(len(self.prompts)):
            if number in self.done:
                continue
            try:
                prompt = self.prompts[number]
                if self.config.blind and not (prompt.images or prompt.videos):
                    self.skipped[number] = "no picture to hide"
                    continue
                prompt = accepted(prompt, accept)
            except UnreadablePrompt as error:
                self.skipped[number] = str(error)
                self.log.note(error)
                continue
            yield number, blind(prompt) if self.config.blind else prompt


def _open_and_sample(
    config: SamplingRunConfig,
    reward: Verifier,
    remaining: RemainingPrompts,
    derived: Sequence[DerivedOption],
    stack: ExitStack,
) -> Iterator[tuple[int, Group, Sequence[Score]]]:
    """Opens engines and reward if prompts remain, and yields the answers.

    Args:
        config: The options.
        reward: The reward.
        remaining: The prompts.
        derived: Options that were derived, to print.
        stack: Closes what was opened.
    """
    rollout = config.rollout
    environment = load_function(config.environment, "environment") if config.environment else None
    runner = stack.enter_context(open_runner(reward, config))
    inputs = open_inputs(config.model, rollout, runner, environment)
    total, drawn = len(remaining), replace(remaining, prompts=inputs.as_seen(remaining.prompts)).draw(inputs.accept)
    first = next(drawn, None)
    if first is None:
        return
    dry_run(runner, first[1])
    try_episode(inputs, first[1])
    console = Console(stderr=True)
    rollout = with_engine_threads(rollout, config.model, console, derived)
    stack.enter_context(local_ray())
    spec = EngineSpec(
        model=config.model,
        config=rollout,
        backend=choose_backend(rollout, learner_gpus=0),
        banned_ids=tuple(vision_token_ids(inputs.processor)),
    )
    pool = EnginePool(spec, episodes=inputs.episodes())
    stack.callback(pool.close)
    max_prompts = LOOKAHEAD * -(-rollout.max_running * rollout.num_engines // config.samples)
    yield from track(
        generate_and_score(pool, runner, chain([first], drawn), config, max_prompts=max_prompts),
        "sampling",
        total=total,
        console=console,
        disable=not console.is_terminal,
    )


class Generator(Protocol):
    """The methods of `rollout.pool.engine_pool.EnginePool` that sampling uses."""

    def start(self, coroutine: Any, /) -> Future[Group]: ...

    def answer(self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int, /) -> Any: ...


class Scorer(Protocol):
    """The method of `rewards.workers.runner.RewardRunner` that sampling uses."""

    def submit(self, group: Group, /) -> Future[list[Score]]: ...


def generate_and_score(
    pool: Generator, runner: Scorer, drawn: Iterator[tuple[int, Prompt]], config: SamplingRunConfig, *, max_prompts: int
) -> Iterator[tuple[int, Group, Sequence[Score]]]:
    """Yields each prompt's completions and scores as soon as they are complete, in any order.

    Args:
        pool: The engines.
        runner: The reward.
        drawn: Rows and prompts; drawn only when there is room, since their pictures take memory.
        config: Sampling parameters, seed and samples per prompt.
        max_prompts: Most prompts in progress at a time.
    """
    sampling = sampling_of(config)
    generating: dict[Future[Group], int] = {}
    scoring: dict[Future[list[Score]], tuple[int, Group]] = {}
    exhausted = False
    try:
        while True:
            while not exhausted and len(generating) + len(scoring) < max_prompts:
                if (item := next(drawn, None)) is None:
                    exhausted = True
                else:
                    number, prompt = item
                    seeds = [request_seed(config.seed, SEED_STEP, prompt.id, i) for i in range(config.samples)]
                    generating[pool.start(pool.answer(prompt, sampling, seeds, 0))] = number
            if not generating and not scoring:
                return
            wait(_all(generating, scoring), return_when=FIRST_COMPLETED)
            for generated in [future for future in generating if future.done()]:
                number, group = generating.pop(generated), generated.result()
                scoring[runner.submit(group)] = (number, group)
            for scored in [future for future in scoring if future.done()]:
                number, group = scoring.pop(scored)
                yield number, group, scored.result()
    finally:  # cancels the rest after an error or an interrupt
        for future in _all(generating, scoring):
            future.cancel()


def _all(*futures: Iterable[Future[Any]]) -> list[Future[Any]]:
    return list(chain(*futures))
