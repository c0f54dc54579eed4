"""A teacher: engines that sample nothing, and score the student's completions under a frozen policy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rollout.config import RolloutConfig
from rollout.engine.spec import EngineSpec
from rollout.pool.dispatcher import Dispatcher, PrefixAffinity
from rollout.pool.engine_pool import EnginePool
from rollout.rendering import collapse_images
from rollout.types import Completion, GenerateCall, Group, History, Request, Sampling, observed_images

if TYPE_CHECKING:
    from transformers import ProcessorMixin


class TeacherScorer:
    """Scores groups on a teacher's engines.

    Args:
        processor: The student's processor.
        temperature: The student's temperature, which divides the teacher's logits as well.
        dispatcher: The queue in front of the engines.
    """

    def __init__(self, processor: ProcessorMixin, temperature: float, dispatcher: Dispatcher) -> None:
        self._processor, self._dispatcher = processor, dispatcher
        self._sampling = Sampling(max_tokens=0, temperature=temperature)

    async def score(self, group: Group, *, batch: int = 0) -> list[np.ndarray]:
        """Returns [completions] of [T] float32: log-probabilities of each completion's tokens, observations included.

        Args:
            group: The student's completions.
            batch: Groups of a smaller number go first.

        Raises:
            RuntimeError: If engines fail repeatedly, or if the teacher reads other tokens than the student.
        """
        # Siblings go to one engine and share the names of their pictures, which are processed and encoded once.
        request, affinity = Request(prompt=group.prompt), PrefixAffinity()

        async def score_one(completion: Completion) -> np.ndarray:
            if not len(completion.token_ids):  # an episode that could not begin
                return np.zeros(0, np.float32)
            token_ids = collapse_images(self._processor, completion.token_ids)
            whole = replace(request, history=History(token_ids=token_ids, images=observed_images(completion)))
            call = GenerateCall(request=whole, sampling=self._sampling, seeds={0: 0}, policy_version=0)
            scored = await self._dispatcher.generate(call, batch=batch, affinity=affinity)
            require_same_reading(group, completion, scored.prompt_token_ids)
            return scored.completions[0].logprobs[len(group.prompt_token_ids) :]

        try:
            return list(await asyncio.gather(*map(score_one, group.completions)))
        except RuntimeError as error:
            raise RuntimeError(f"the teacher: {error}") from error


class Teacher:
    """A frozen policy, served by vLLM, that returns log-probabilities of completions.

    Its engines are those of an `EnginePool`. An engine that dies or hangs is replaced alone, from the teacher's folder, and its
    unfinished completions are scored again.

    Args:
        model: The teacher: a folder or hub name that every engine's node can read.
        student: The policy that samples. Its processor renders the prompts.
        config: The teacher's engine options, with the student's pixel limits, temperature and lengths.
        processor: The student's processor.
        banned_ids: Tokens that the student never samples. The teacher's normalisation leaves them out as well.

    Raises:
        ValueError: If the Ray cluster has too few CPUs or GPUs.
        RuntimeError: If an engine does not start. The message is the engine's.
    """

    def __init__(
        self,
        model: str | Path,
        student: str | Path,
        config: RolloutConfig,
        *,
        processor: ProcessorMixin,
        banned_ids: Sequence[int],
    ) -> None:
        # No weights are ever sent. This backend alone can replace an engine without a learner.
        spec = EngineSpec(
            model=model, config=config, backend="shared_memory", banned_ids=tuple(banned_ids), student=student
        )
        self._pool = EnginePool(spec)
        self._scorer = TeacherScorer(processor, config.temperature, self._pool.dispatcher)

    def submit(self, group: Group, *, batch: int = 0) -> Future[list[np.ndarray]]:
        """Starts `TeacherScorer.score` and returns a future of its result."""
        return self._pool.start(self._scorer.score(group, batch=batch))

    def metrics(self) -> dict[str, float]:
        """Returns `time/teacher_idle` and `rollout/teacher_failures`, like `EnginePool.metrics` for the student's engines."""
        metrics = self._pool.metrics()
        return {
            "time/teacher_idle": metrics["time/engine_idle"],
            "rollout/teacher_failures": metrics["rollout/engine_failures"],
        }

    def close(self) -> None:
        """Ends every engine and its processes."""
        self._pool.close()


def require_same_reading(group: Group, completion: Completion, read_L: np.ndarray) -> None:
    """Checks that the teacher has read the student's tokens.

    Raises:
        RuntimeError: Names the prompt and the first token that differs.
    """
    ours_L = np.concatenate([group.prompt_token_ids, completion.token_ids])
    if np.array_equal(ours_L, read_L):
        return
    shorter = min(len(ours_L), len(read_L))
    differs = ours_L[:shorter] != read_L[:shorter]
    place = int(differs.argmax()) if differs.any() else shorter
    raise RuntimeError(
        f"prompt {group.prompt.id!r}: from token {place} on the teacher read {read_L[place : place + 8].tolist()} and the student "
        f"{ours_L[place : place + 8].tolist()} ({len(read_L)} and {len(ours_L)} tokens in all): pictures must take equally many "
        "tokens in both: set rollout.max_image_pixels"
    )
