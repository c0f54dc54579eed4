"""The way of a batch: drawn, generated, scored — ahead of the learner, as far as `max_staleness` allows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.types import Score
from rewards.workers.runner import RewardRunner
from rl.config import TrainConfig
from rl.learner.microbatches import TeacherLogprobs
from rollout.data.mixture import Stream
from rollout.pool.engine_pool import EnginePool, request_seed
from rollout.pool.teacher import Teacher
from rollout.rendering import require_same_tokens
from rollout.types import Group, Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one step learns from.

    Attributes:
        groups: One for each prompt.
        scores: [groups][completions].
        num_refills: Groups without variance that were set aside for others.
        seconds_to_generate: From the batch's start until its last completion.
        seconds_to_score: From then until its last score, and the teacher's last word.
        teacher_logprobs: [groups][completions] of [T], a teacher's log-probabilities of the completions' tokens; None without one.
    """

    groups: Sequence[Group]
    scores: Sequence[Sequence[Score]]
    num_refills: int
    seconds_to_generate: float
    seconds_to_score: float
    teacher_logprobs: TeacherLogprobs | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Pending:
    """A batch on its way, and where the stream of prompts stood before it."""

    cursor: dict[str, Any]
    future: Future[Batch]


class Rollouts:
    """Batches in the order of their steps, each with the prompts that the stream has for it.

    Args:
        config: The run's choices.
        stream: Where prompts come from.
        pool: The engines.
        runner: The reward.
        processor: The learner's, to make sure that the engines read prompts as it does.
        first_step: The step that the first batch is for.
        teacher: Has a word on every completion; None where there is none.
    """

    def __init__(
        self,
        config: TrainConfig,
        stream: Stream,
        pool: EnginePool,
        runner: RewardRunner,
        processor: Any,
        *,
        first_step: int,
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.stream, self.pool, self.runner, self.processor = config, stream, pool, runner, processor
        self._next_step, self._teacher = first_step, teacher
        self._drawing = threading.Lock()
        self._round = 0
        self._pending: dict[int, _Pending] = {}
        self._sampling = Sampling(max_tokens=config.rollout.max_tokens, temperature=config.rollout.temperature)

    def start(self, policy_version: int, *, last_step: int) -> None:
        """Starts the batches that may start now that the engines hold a version, and have not been started yet.

        A batch may be learnt from as long as its oldest token is at most `max_staleness` versions older than the learner.

        Args:
            policy_version: Of the engines; the learner at step s starts from version s − 1.
            last_step: No batch is started beyond it.
        """
        while self._next_step <= min(policy_version + 1 + self.config.max_staleness, last_step):
            with self._drawing:
                cursor = self.stream.state()
                prompts = self.stream.next_batch()
            future = self.pool.start(self._batch(self._next_step, prompts, policy_version))
            self._pending[self._next_step] = _Pending(cursor=cursor, future=future)
            self._next_step += 1

    def take(self, step: int) -> Batch:
        """Waits for a step's batch.

        Raises:
            RuntimeError: If the engines have failed; `CannotReplace` if others in their place may do.
        """
        pending = self._pending[step]
        try:
            batch = pending.future.result()
        except BaseException:
            pending.future.cancel()
            raise
        del self._pending[step]
        return batch

    def put_back(self) -> None:
        """Lets go of all batches that nobody has taken; `start` will start them anew, with the same prompts and seeds."""
        cursor, first = self.cursor(), min(self._pending, default=self._next_step)
        self.close()
        with self._drawing:
            self._round += 1
            self.stream.restore(cursor)
            self._next_step = first

    def cursor(self) -> dict[str, Any]:
        """Where the stream goes on after a resume: before the oldest batch that nobody has taken.

        What batches drew as refills since then may come a second time.
        """
        if self._pending:
            return self._pending[min(self._pending)].cursor
        with self._drawing:
            return self.stream.state()

    def close(self) -> None:
        """Lets go of what is still on its way."""
        for pending in self._pending.values():
            pending.future.cancel()
        self._pending.clear()

    async def _batch(self, step: int, prompts: Sequence[Prompt], policy_version: int) -> Batch:
        """Generates and scores; draws another prompt for each group without variance, as far as `refill_prompts` goes.

        How many prompts are drawn, which, and which groups remain, does not depend on the order in which groups are done; unless
        two batches draw at the same time (`max_staleness` and `refill_prompts` together): they do so as they come. Of a mixture,
        a refill is of the task whose group it replaces, in one of that task's places, and each task has its share of the refills.
        """
        started = generated = time.perf_counter()
        this_round = self._round
        drawn, results = list(prompts), dict[int, tuple[Group, list[Score]]]()
        sources = [self.stream.source(prompt) for prompt in prompts]
        refills_left = refills_of_sources(self.config.refill_prompts, sources)
        told: dict[int, list[np.ndarray]] = {}

        async def answer(index: int) -> None:
            nonlocal generated
            seeds = self._seeds(step, drawn, index)
            group = await self.pool.answer(drawn[index], self._sampling, seeds, policy_version, batch=step)
            generated = time.perf_counter()
            await asyncio.to_thread(require_same_tokens, self.processor, group)
            teaching = self._teacher.submit(group, batch=step) if self._teacher else None
            scores = await asyncio.wrap_future(self.runner.submit(group))
            if teaching is not None:
                told[id(group)] = await asyncio.wrap_future(teaching)
            results[index] = group, scores
            source = sources[index]
            if refills_left[source] and not has_variance(scores):
                refills_left[source] -= 1
                await answer(await asyncio.to_thread(self._refill, drawn, sources, source, this_round))

        tasks = [asyncio.ensure_future(answer(index)) for index in range(len(prompts))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        kept = keep_groups([results[index] for index in range(len(drawn))], sources, len(prompts))
        return Batch(
            groups=[group for group, _ in kept],
            scores=[scores for _, scores in kept],
            num_refills=len(drawn) - len(prompts),
            seconds_to_generate=generated - started,
            seconds_to_score=time.perf_counter() - generated,
            teacher_logprobs=[told[id(group)] for group, _ in kept] if self._teacher else None,
        )

    def _refill(self, drawn: list[Prompt], sources: list[str], source: str, of_round: int) -> int:
        """Draws one more prompt of a source for a batch; returns its place there."""
        with self._drawing:
            if of_round != self._round:  # the batch has been let go, and its prompts put back
                raise asyncio.CancelledError
            drawn.append(self.stream.next_of(source))
            sources.append(source)
            return len(drawn) - 1

    def _seeds(self, step: int, drawn: Sequence[Prompt], index: int) -> list[int]:
        """Of a prompt that was drawn twice, the second group goes on where the first one's seeds end."""
        prompt, size = drawn[index], self.config.group_size
        first = size * sum(earlier.id == prompt.id for earlier in drawn[:index])
        return [request_seed(self.config.seed, step, prompt.id, i) for i in range(first, first + size)]


def has_variance(scores: Sequence[Score]) -> bool:
    """Whether a group's verdicts differ: without a difference there is no advantage, and nothing to learn."""
    return len({score.reward for score in scores if score.error is None}) > 1


def refills_of_sources(num_refills: int, sources: Sequence[str]) -> dict[str, int]:
    """Each source's share of the refills, by its share of the batch: who is done first must not decide who may draw again.

    Args:
        num_refills: Refills of the batch.
        sources: The source of each prompt of the batch.
    """
    counts = Counter(sources)
    left = {source: num_refills * count // len(sources) for source, count in counts.items()}
    rounded_off = {source: num_refills * count % len(sources) for source, count in counts.items()}
    for source in sorted(counts, key=rounded_off.__getitem__, reverse=True)[: num_refills - sum(left.values())]:
        left[source] += 1
    return left


def keep_groups(
    scored: Sequence[tuple[Group, Sequence[Score]]], sources: Sequence[str], num_groups: int
) -> list[tuple[Group, Sequence[Score]]]:
    """The first groups of each source that can teach anything, and, if they are too few, the first of the others; in their order.

    Args:
        scored: The groups of a batch, and behind them its refills.
        sources: The source of each.
        num_groups: Groups of the batch. Each of their places keeps its source, so that minibatches keep their ratio.
    """
    flat = [not has_variance(scores) for _, scores in scored]
    places = sources[:num_groups]
    kept: dict[str, Iterator[int]] = {
        source: iter(_best([i for i, its in enumerate(sources) if its == source], flat, places.count(source)))
        for source in set(places)
    }
    return [scored[next(kept[source])] for source in places]


def _best(indices: Sequence[int], flat: Sequence[bool], count: int) -> list[int]:
    return sorted(sorted(indices, key=lambda index: (flat[index], index))[:count])
