"""Endless batches of prompts in a shuffled, resumable order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from rollout.data.media import UnreadablePrompt
from rollout.data.prompts import Accept, Rows, SkipLog, accepted, prompts_from
from rollout.types import Prompt

READERS = 4
"""Threads that open images and videos ahead. Decoders do not hold Python's lock."""


class PromptStream:
    """Endless batches of prompts, with a new order in every epoch.

    The order of an epoch depends on (seed, epoch) alone, so a cursor of a few numbers resumes the stream exactly. Batches run
    across epochs, so no prompt is dropped. No prompt comes twice in a batch while enough others can be read: one that the next
    epoch brings too early waits for the next batch.

    Threads open the next batch's images and videos ahead. The order does not depend on them.

    Attributes:
        skipped: Prompts skipped because they could not be read or were refused. A bad row counts once in each epoch, and is logged
            the first time.
    """

    def __init__(self, prompts: Rows, *, batch_size: int, seed: int, accept: Accept | None = None) -> None:
        """Starts at the first batch of epoch 0.

        Args:
            prompts: Prompts, or rows that `prompts_from` takes.
            batch_size: Prompts in each batch, at least 1. May exceed the number of prompts, which then repeat.
            seed: Seeds the order, at least 0.
            accept: Returns the reason to refuse a prompt, such as its length. The next prompt replaces it.

        Raises:
            ValueError: If there are no prompts, or `batch_size` or `seed` is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}")
        self._prompts = prompts_from(prompts)
        if not self._prompts:
            raise ValueError("the dataset has 0 prompts: check its split and its filters")
        self.skipped = 0
        self._log = SkipLog()
        self._batch_size = batch_size
        self._seed = seed
        self._accept = accept
        self._unusable: set[int] = set()
        self._postponed: list[int] = []
        self._used: Counter[str] = Counter()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="prompts")
        self._opened: dict[int, Future[Prompt]] = {}
        self._go_to(epoch=0, position=0)

    def next_batch(self, size: int | None = None) -> list[Prompt]:
        """Draws the next prompts.

        Args:
            size: Number of prompts; default: `batch_size`.

        Raises:
            ValueError: If no prompt of the dataset can be used. The message has the last reason.
        """
        size = self._batch_size if size is None else size
        batch: list[Prompt] = []
        taken: set[int] = set()
        waiting, self._postponed = self._postponed, []
        # Two epochs later every prompt has come by, so only repeats can fill the batch.
        last_epoch = self._epoch + 2
        while len(batch) < size:
            index = waiting.pop(0) if waiting else self._next_index()
            if index in taken and self._epoch < last_epoch:
                self._postponed.append(index)
            elif (prompt := self._draw(index)) is not None:
                if self._used[prompt.id]:
                    self._used[prompt.id] -= 1
                    continue
                taken.add(index)
                batch.append(prompt)
        self._postponed = waiting + self._postponed
        self._open_next()
        return batch

    def source(self, prompt: Prompt) -> str:
        """Returns the source of a prompt for `next_of`. This stream has one source."""
        return ""

    def next_of(self, source: str) -> Prompt:
        """Draws one more prompt; see `next_batch`."""
        return self.next_batch(1)[0]

    def _open_next(self) -> None:
        """Starts threads that open the next batch, up to the epoch's end."""
        coming = [*self._postponed, *self._order[self._position :][: self._batch_size].tolist()][: self._batch_size]
        self._opened = {
            index: self._opened.get(index) or self._readers.submit(self._prompts.__getitem__, index) for index in coming
        }

    def state(self) -> dict[str, Any]:
        """Returns the cursor, for JSON. A stream that restores it continues with the same batches."""
        state = {
            "num_prompts": len(self._prompts),
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "postponed": list(self._postponed),
            "skipped": self.skipped,
        }
        used = list(self._used.elements())
        return {**state, "used": used} if used else state

    def without(self, state: Mapping[str, Any], used: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Returns a cursor from which prompts that were used ahead of it do not come again.

        Args:
            state: A cursor of this stream.
            used: Source and id of each of these prompts.
        """
        ids = [*state.get("used", []), *(prompt_id for _, prompt_id in used)]
        return {**state, "used": ids} if ids else dict(state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state that `state()` returned.

        Raises:
            ValueError: If the state belongs to another number of prompts, another seed, or a mixture, or is none.
        """
        if "tasks" in state:
            raise ValueError(
                f"the saved prompt order belongs to a mixture of {', '.join(map(repr, state['tasks']))}, this run has one set of "
                "prompts: resume with the mixture of the saved run"
            )
        for name, ours in (("num_prompts", len(self._prompts)), ("seed", self._seed)):
            if state.get(name) != ours:
                raise ValueError(
                    f"the saved prompt order has {name} {state.get(name)}, this run has {ours}: "
                    "resume with the dataset and seed of the saved run"
                )
        self._require_cursor(state)
        self.skipped = state["skipped"]
        self._postponed = list(state["postponed"])
        self._used = Counter(state.get("used", []))
        self._go_to(epoch=state["epoch"], position=state["position"])

    def _require_cursor(self, state: Mapping[str, Any]) -> None:
        """Raises a ValueError for numbers that no stream of these prompts has."""
        limits = {"epoch": None, "skipped": None, "position": len(self._prompts)}
        indices, used = state.get("postponed"), state.get("used", [])
        if not isinstance(used, list) or not all(isinstance(each, str) for each in used):
            raise ValueError(f"the saved prompt order has used {used!r}: the checkpoint's state is damaged")
        numbers = [(name, state.get(name), limit) for name, limit in limits.items()]
        numbers += [
            ("postponed", index, len(self._prompts)) for index in (indices if isinstance(indices, list) else [None])
        ]
        for name, value, limit in numbers:
            if type(value) is not int or value < 0 or (limit is not None and value >= limit):
                raise ValueError(f"the saved prompt order has {name} {value!r}: the checkpoint's state is damaged")

    def _go_to(self, *, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts))

    def _next_index(self) -> int:
        index = int(self._order[self._position])
        self._position += 1
        if self._position == len(self._order):
            self._go_to(epoch=self._epoch + 1, position=0)
        return index

    def _draw(self, index: int) -> Prompt | None:
        try:
            opened = self._opened.pop(index, None)
            prompt = accepted(opened.result() if opened else self._prompts[index], self._accept)
        except UnreadablePrompt as error:
            self._skip(index, error)
            return None
        self._unusable.discard(index)
        return prompt

    def _skip(self, index: int, error: UnreadablePrompt) -> None:
        self.skipped += 1
        if index not in self._unusable:
            self._log.note(error)
        self._unusable.add(index)
        if len(self._unusable) == len(self._prompts):
            raise ValueError(f"none of the {len(self._prompts)} prompts can be used; the last one: {error}") from error
