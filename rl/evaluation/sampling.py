"""Asks a checkpoint each prompt several times, scores what comes and keeps it: what evaluation and pass rates are made of."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from rl.preflight import open_inputs, open_runner, try_episode
from rl.run import local_ray
from rollout.data.media import UnreadablePrompt
from rollout.data.prompts import Accept, Prompts, blind
from rollout.pool.engine_pool import RolloutPool, request_seed
from rollout.types import Group, Prompt, Sampling
from rollout.weights.senders import choose_backend

logger = logging.getLogger(__name__)

ASKED = -1
"""In place of a step in the seeds: the same questions get the same answers whenever they are answer_identity."""
AHEAD = 2
"""Prompts that are under way, as a multiple of what the engines work at: none of them waits for the slowest of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAnswers:
    """What a run has come to.

    Attributes:
        config: Its choices.
        run_dir: Where everything is.
        outcomes: One for each prompt that was answered, in the order of the data.
        rows: Their rows in the data.
        skipped: Why prompts were not answer_identity, by their rows.
        num_asked: Prompts answer_identity this time; the others had been before.
    """

    config: SamplingRunConfig
    run_dir: Path
    outcomes: Sequence[PromptResult]
    rows: Sequence[int]
    skipped: dict[int, str]
    num_asked: int


def sample_and_score(config: SamplingRunConfig, name: str) -> SampledAnswers:
    """Asks what has not been answered yet, and returns all answers.

    Args:
        config: The choices.
        name: Of the folder in runs/, where the config names none.

    Raises:
        ValueError: For whatever is wrong with config, data, reward or checkpoint; before any engine starts.
    """
    check_sampling_run(config)
    reward = find_reward(config.reward)
    supported_model(config.model)
    what = answer_identity(config)
    run_dir = config.run_dir or Path("runs") / name / f"{Path(config.model).name}-{digest(what)}"
    prompts = prompts_of(config)
    prompts = prompts[: config.limit] if config.limit else prompts
    records = AnswerStore(run_dir, what, pictures=config.pictures)
    todo = RemainingPrompts(config, prompts, records.done)
    before = len(records.done)
    with ExitStack() as stack:
        for number, group, scores in _answered(config, reward, todo, stack):
            records.add(number, group, scores)
    found = _outcomes(config, records, len(prompts))
    if not found:
        reasons = list(todo.skipped.values()) or ["the data has none"]
        raise ValueError(f"no prompt of {config.data} could be answer_identity; the first: {reasons[0]}")
    return SampledAnswers(
        config=config,
        run_dir=run_dir,
        outcomes=[found[number] for number in sorted(found)],
        rows=sorted(found),
        skipped=todo.skipped,
        num_asked=len(records.done) - before,
    )


def _outcomes(config: SamplingRunConfig, records: AnswerStore, num_prompts: int) -> dict[int, PromptResult]:
    """What is recorded of the first prompts, by their rows.

    Raises:
        ValueError: No score has the part that is to decide.
    """
    correct = CorrectnessRule(at_least=config.correct.at_least, part=config.correct.part)
    found, parts = {}, set[str]()
    for row in records.rows():
        if row["row"] < num_prompts:
            found[row["row"]] = prompt_result(row, correct)
            parts.update(name for each in row["completions"] for name in each["parts"])
    if any(outcome.correct for outcome in found.values()):
        correct.require_part(parts)
    return found


@dataclass(slots=True)
class RemainingPrompts:
    """The prompts that are still to be answer_identity, drawn one after the other; notes those that cannot be."""

    config: SamplingRunConfig
    prompts: Prompts
    done: set[int]
    skipped: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(number not in self.done for number in range(len(self.prompts)))

    def draw(self, accept: Accept) -> Iterator[tuple[int, Prompt]]:
        for number in range(len(self.prompts)):
            if number in self.done:
                continue
            try:
                prompt = self.prompts[number]
            except UnreadablePrompt as error:
                self._skip(number, str(error))
                continue
            if self.config.blind and not (prompt.images or prompt.videos):
                self._skip(number, "no picture to take away", quietly=True)
            elif reason := accept(prompt):
                self._skip(number, f"prompt {prompt.id!r}: {reason}")
            else:
                yield number, blind(prompt) if self.config.blind else prompt

    def _skip(self, number: int, reason: str, *, quietly: bool = False) -> None:
        self.skipped[number] = reason
        if not quietly:
            logger.warning("skipped %s", reason)


def _answered(
    config: SamplingRunConfig, reward: Verifier, todo: RemainingPrompts, stack: ExitStack
) -> Iterator[tuple[int, Group, Sequence[Score]]]:
    """Opens engines and reward, if there is anything to ask, and yields what is answered; `stack` closes them again."""
    rollout = config.rollout
    environment = load_function(config.environment, "environment") if config.environment else None
    runner = stack.enter_context(open_runner(reward, config))
    inputs = open_inputs(config.model, rollout, runner, environment)
    total, drawn = len(todo), todo.draw(inputs.accept)
    first = next(drawn, None)
    if first is None:
        return
    dry_run(runner, first[1])
    try_episode(inputs, first[1])
    stack.enter_context(local_ray())
    pool = RolloutPool(
        config.model,
        rollout,
        backend=choose_backend(rollout, learner_gpus=0),
        banned_ids=vision_token_ids(inputs.processor),
        policy_version=0,
        episodes=inputs.episodes(),
    )
    stack.callback(pool.close)
    most = AHEAD * -(-rollout.max_running * rollout.num_engines // config.samples)
    console = Console(stderr=True)
    yield from track(
        answers(pool, runner, chain([first], drawn), config, most=most),
        "asking",
        total=total,
        console=console,
        disable=not console.is_terminal,
    )


class Generator(Protocol):
    """What is needed of the engines: `rollout.pool.engine_pool.RolloutPool`."""

    def start(self, coroutine: Any, /) -> Future[Group]: ...

    def answer(self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int, /) -> Any: ...


class Scorer(Protocol):
    """What is needed of the reward: `rewards.workers.runner.RewardRunner`."""

    def submit(self, group: Group, /) -> Future[list[Score]]: ...


def answers(
    pool: Generator, runner: Scorer, drawn: Iterator[tuple[int, Prompt]], config: SamplingRunConfig, *, most: int
) -> Iterator[tuple[int, Group, Sequence[Score]]]:
    """Yields each prompt's completions and their scores as soon as they are there, in whatever order.

    Args:
        pool: The engines.
        runner: The reward.
        drawn: Numbers and prompts; drawn when there is room, for their pictures take memory.
        config: How often and how each is answer_identity.
        most: Prompts under way at a time.
    """
    sampling = sampling_of(config)
    asking: dict[Future[Group], int] = {}
    scoring: dict[Future[list[Score]], tuple[int, Group]] = {}
    exhausted = False
    try:
        while True:
            while not exhausted and len(asking) + len(scoring) < most:
                if (item := next(drawn, None)) is None:
                    exhausted = True
                else:
                    number, prompt = item
                    seeds = [request_seed(config.seed, ASKED, prompt.id, i) for i in range(config.samples)]
                    asking[pool.start(pool.answer(prompt, sampling, seeds, 0))] = number
            if not asking and not scoring:
                return
            wait(_all(asking, scoring), return_when=FIRST_COMPLETED)
            for answered in [future for future in asking if future.done()]:
                number, group = asking.pop(answered), answered.result()
                scoring[runner.submit(group)] = (number, group)
            for scored in [future for future in scoring if future.done()]:
                number, group = scoring.pop(scored)
                yield number, group, scored.result()
    finally:  # after an error or an interrupt nobody waits for the rest
        for future in _all(asking, scoring):
            future.cancel()


def _all(*futures: Iterable[Future[Any]]) -> list[Future[Any]]:
    return list(chain(*futures))
