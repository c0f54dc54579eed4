"""A teacher: engines that draw nothing, and tell how likely a frozen policy finds what another one has said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rollout.config import RolloutConfig
from rollout.pool.dispatcher import Dispatcher, Home
from rollout.pool.engine_pool import RolloutPool
from rollout.rendering import collapse_images
from rollout.types import Completion, Group, Request, Said, Sampling, observed_images

if TYPE_CHECKING:
    from transformers import ProcessorMixin


class Reader:
    """Has a teacher's engines read groups.

    Args:
        processor: The student's.
        temperature: The student's: it divides the teacher's logits as well.
        dispatcher: The queue in front of the engines.
    """

    def __init__(self, processor: ProcessorMixin, temperature: float, dispatcher: Dispatcher) -> None:
        self._processor, self._dispatcher = processor, dispatcher
        self._reading = Sampling(max_tokens=0, temperature=temperature)

    async def read(self, group: Group, *, batch: int = 0) -> list[np.ndarray]:
        """[completions] of [T] float32: log-probabilities of each one's tokens, those of observations included.

        Args:
            group: What the student has said.
            batch: Groups of a smaller number go first.

        Raises:
            RuntimeError: If engines fail again and again, or if the teacher reads other tokens than the student.
        """
        # Siblings go to one engine and name their pictures alike: these are processed and encoded once.
        request, home = Request(prompt=group.prompt), Home()

        async def read_one(completion: Completion) -> np.ndarray:
            if not len(completion.token_ids):  # an episode that could not begin
                return np.zeros(0, np.float32)
            token_ids = collapse_images(self._processor, completion.token_ids)
            whole = replace(request, said=Said(token_ids=token_ids, images=observed_images(completion)))
            answer = await self._dispatcher.generate(whole, self._reading, [0], 0, batch=batch, home=home)
            require_same_reading(group, completion, answer.prompt_token_ids)
            return answer.completions[0].logprobs[len(group.prompt_token_ids) :]

        try:
            return list(await asyncio.gather(*map(read_one, group.completions)))
        except RuntimeError as error:
            raise RuntimeError(f"the teacher: {error}") from error


class Teacher:
    """Log-probabilities of completions under a policy that does not change, served by vLLM.

    Its engines are those of `RolloutPool`: one that dies or hangs is replaced alone, from the teacher's own folder, and what it had
    not read is read again.

    Args:
        model: The teacher: a folder or hub name that every engine's node can read.
        student: The policy that samples; prompts are rendered as it reads them.
        config: The teacher's engines; pictures, temperature and lengths as the student's.
        processor: The student's.
        banned_ids: Tokens that the student never samples: left out of the teacher's normalisation as well.

    Raises:
        ValueError: If the Ray cluster has too few CPUs or GPUs.
        RuntimeError: If an engine does not start; the message is its own.
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
        # Nothing is ever sent to it; and of all ways this alone asks for no learner where an engine is replaced.
        self._pool = RolloutPool(
            model, config, backend="shared_memory", banned_ids=banned_ids, policy_version=0, teaches=student
        )
        self._reader = Reader(processor, config.temperature, self._pool.dispatcher)

    def submit(self, group: Group, *, batch: int = 0) -> Future[list[np.ndarray]]:
        """A future of what `Reader.read` returns or raises."""
        return self._pool.start(self._reader.read(group, batch=batch))

    def metrics(self) -> dict[str, float]:
        """`time/teacher_idle` and `rollout/teacher_failures`, as `RolloutPool.metrics` has them of its engines."""
        its = self._pool.metrics()
        return {
            "time/teacher_idle": its["time/engine_idle"],
            "rollout/teacher_failures": its["rollout/engine_failures"],
        }

    def close(self) -> None:
        """Ends every engine and its processes."""
        self._pool.close()


def require_same_reading(group: Group, completion: Completion, read_L: np.ndarray) -> None:
    """Makes sure that the teacher has read what the student has read and said.

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
