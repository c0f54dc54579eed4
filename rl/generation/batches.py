"""Prompts in, scored batches out, generated ahead of the learner as far as `max_staleness` allows.

Lists: groups of a batch, completions of a group. Shapes: T tokens of a completion.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewards.types import Score
from rewards.workers.runner import RewardRunner
from rl.config import BatchOptions
from rl.generation.dynamic_sampling import has_variance, refill_budget, select_groups
from rl.samples import TeacherLogprobs
from rollout.data.mixture import Stream
from rollout.pool.engine_pool import EnginePool
from rollout.pool.seeds import request_seed
from rollout.pool.teacher import Teacher
from rollout.rendering import require_same_tokens
from rollout.types import Group, Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredBatch:
    """The groups of one step with their scores."""

    groups: Sequence[Group]
    """One for each prompt."""
    scores: Sequence[Sequence[Score]]
    """[groups][completions]."""
    num_refills: int
    """Groups without reward variance that were replaced."""
    seconds_to_generate: float
    """From the batch's start to its last completion."""
    seconds_to_score: float
    """From then to its last score, the teacher's included."""
    teacher_logprobs: TeacherLogprobs | None = None
    """[groups][completions] of [T]; None without a teacher."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stages:
    """The stages that a batch goes through."""

    stream: Stream
    """Prompts."""
    pool: EnginePool
    """Completions."""
    runner: RewardRunner
    """Scores."""
    processor: Any
    """The learner's processor, which must read prompts as the engines do."""
    teacher: Teacher | None = None
    """A teacher's log-probabilities."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Draft:
    """The prompts of a batch so far, with the results of those that are done."""

    prompts: list[Prompt]
    sources: list[str]
    refills_left: dict[str, int]
    results: dict[int, tuple[Group, list[Score]]] = field(default_factory=dict)
    """By the prompt's index."""
    teacher_logprobs: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """By the group's `id`."""
    generated: float = field(default_factory=time.perf_counter)
    """Time of the last completion."""
    refills: list[tuple[int, str, str]] = field(default_factory=list)
    """For each refill the first step that was not drawn before it, its source and its id."""
    is_cancelled: bool = False
    """True if the batch is not wanted any more."""


@dataclass(slots=True, kw_only=True, eq=False)
class _PendingBatch:
    """A batch in progress."""

    cursor: dict[str, Any]
    """Position of the prompt stream before the batch."""
    draft: _Draft
    future: Future[ScoredBatch]


class BatchProducer:
    """Generates and scores batches in the order of their steps.

    Args:
        options: Sizes, staleness and refills.
        sampling: The sampling parameters of the engines.
        stages: The stages of a batch.
        seed: Seeds every sampled token.
        steps: The steps to produce batches for.
    """

    def __init__(self, options: BatchOptions, sampling: Sampling, stages: Stages, *, seed: int, steps: range) -> None:
        self._options, self._sampling, self._stages, self._seed = options, sampling, stages, seed
        self._next_step, self._last_step = steps.start, steps.stop - 1
        self._stream_lock = threading.Lock()
        self._pending: dict[int, _PendingBatch] = {}
        self._refills: list[tuple[int, str, str]] = []
        """Refills of taken batches that may lie ahead of the cursor."""
        self._first_cursor = stages.stream.state()

    def restart(self, step: int, cursor: Mapping[str, Any]) -> None:
        """Cancels all batches in progress, and goes back to a step.

        Args:
            step: The next step to produce a batch for.
            cursor: The stream's position there, as `cursor()` returned it; empty for where the stream was at first.
        """
        self.close()
        with self._stream_lock:
            self._stages.stream.restore(cursor or self._first_cursor)
        self._next_step, self._refills = step, []

    def start(self, policy_version: int) -> None:
        """Starts all batches that may start while the engines have `policy_version`.

        The learner at step s starts from version s − 1. So a batch may start `max_staleness` versions ahead of its step.
        """
        last = min(policy_version + 1 + self._options.max_staleness, self._last_step)
        while self._next_step <= last:
            with self._stream_lock:
                cursor, step = self._stages.stream.state(), self._next_step
                draft = self._draft(self._stages.stream.next_batch())
                self._next_step += 1
            future = self._stages.pool.start(self._produce(step, draft, policy_version))
            self._pending[step] = _PendingBatch(cursor=cursor, draft=draft, future=future)

    def take(self, step: int) -> ScoredBatch:
        """Waits for a step's batch.

        Raises:
            RuntimeError: The engines have failed.
        """
        pending = self._pending[step]
        try:
            batch = pending.future.result()
        except BaseException:
            pending.future.cancel()
            raise
        del self._pending[step]
        self._refills += pending.draft.refills
        return batch

    def cursor(self) -> dict[str, Any]:
        """The stream's position for a resume: before the oldest batch that was not taken.

        Refills that taken batches have drawn behind it do not come again.
        """
        with self._stream_lock:
            stream, oldest = self._stages.stream, min(self._pending, default=self._next_step)
            self._refills = [refill for refill in self._refills if refill[0] > oldest]
            used = [(source, prompt_id) for _, source, prompt_id in self._refills]
            return stream.without(self._pending[oldest].cursor, used) if self._pending else stream.state()

    def close(self) -> None:
        """Cancels all batches in progress. They draw no prompts any more when it returns."""
        with self._stream_lock:
            for pending in self._pending.values():
                pending.draft.is_cancelled = True
                pending.future.cancel()
        self._pending.clear()

    def _draft(self, prompts: Sequence[Prompt]) -> _Draft:
        sources = [self._stages.stream.source(prompt) for prompt in prompts]
        refills_left = refill_budget(self._options.refill_prompts, sources)
        return _Draft(prompts=list(prompts), sources=sources, refills_left=refills_left)

    async def _produce(self, step: int, draft: _Draft, policy_version: int) -> ScoredBatch:
        """Generates and scores one batch, refills included.

        The number of drawn prompts, the prompts and the selected groups do not depend on the order in which groups finish. Two
        batches that draw at the same time (`max_staleness` with `refill_prompts`) are the exception: they share one stream. In a
        mixture a refill comes from the source of the group that it replaces.
        """
        started, size = time.perf_counter(), len(draft.prompts)
        tasks = [asyncio.ensure_future(self._answer(draft, index, step, policy_version)) for index in range(size)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        scored = [draft.results[index] for index in range(len(draft.prompts))]
        selected = select_groups(scored, draft.sources, size)
        teacher_logprobs = (
            [draft.teacher_logprobs[id(group)] for group, _ in selected] if self._stages.teacher else None
        )
        return ScoredBatch(
            groups=[group for group, _ in selected],
            scores=[scores for _, scores in selected],
            num_refills=len(draft.prompts) - size,
            seconds_to_generate=draft.generated - started,
            seconds_to_score=time.perf_counter() - draft.generated,
            teacher_logprobs=teacher_logprobs,
        )

    async def _answer(self, draft: _Draft, index: int, step: int, policy_version: int) -> None:
        """Generates and scores one group, then its refill if it has no reward variance."""
        stages, seeds = self._stages, self._seeds(step, draft.prompts, index)
        group = await stages.pool.answer(draft.prompts[index], self._sampling, seeds, policy_version, batch=step)
        draft.generated = time.perf_counter()
        await asyncio.to_thread(require_same_tokens, stages.processor, group)
        scored_by_teacher = stages.teacher.submit(group, batch=step) if stages.teacher else None
        scores = await asyncio.wrap_future(stages.runner.submit(group))
        if scored_by_teacher is not None:
            draft.teacher_logprobs[id(group)] = await asyncio.wrap_future(scored_by_teacher)
        draft.results[index] = group, scores
        source = draft.sources[index]
        if draft.refills_left[source] and not has_variance(scores):
            draft.refills_left[source] -= 1
            refill = await asyncio.to_thread(self._refill, draft, source)
            await self._answer(draft, refill, step, policy_version)

    def _refill(self, draft: _Draft, source: str) -> int:
        """Draws one more prompt of a source; returns its index."""
        with self._stream_lock:
            if draft.is_cancelled:
                raise asyncio.CancelledError
            draft.prompts.append(prompt := self._stages.stream.next_of(source))
            draft.sources.append(source)
            draft.refills.append((self._next_step, source, prompt.id))
            return len(draft.prompts) - 1

    def _seeds(self, step: int, prompts: Sequence[Prompt], index: int) -> list[int]:
        """One seed per completion. A prompt drawn twice in a step gets new seeds for its second group."""
        prompt, size = prompts[index], self._options.group_size
        first = size * sum(earlier.id == prompt.id for earlier in prompts[:index])
        return [request_seed(self._seed, step, prompt.id, i) for i in range(first, first + size)]
