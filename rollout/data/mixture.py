"""Several tasks in every batch, at a fixed ratio in each of its minibatches.

Example:
    prompts = mixture({"geometry": (geometry, 3), "charts": (charts, 1)})
    train(config, prompts=prompts, reward=by_task({"geometry": math_answer, "charts": numeric}))
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice, zip_longest
from numbers import Real
from typing import Any, Protocol
from zlib import crc32

import numpy as np

from rollout.data.media import Fit
from rollout.data.prompts import Accept, Prompts, Rows, prompts_from, readable
from rollout.data.stream import PromptStream
from rollout.types import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Tasks to be mixed; returned by `mixture`.

    It is also a sequence of all prompts, each once, in the ratio as long as every task has some left. So held-out prompts may be a
    mixture as well, and a few of them contain every task.
    """

    sources: Mapping[str, Prompts]
    """The prompts of each task. Its name is their `task`, and precedes their ids."""
    weights: Mapping[str, float]
    """The weight of each task, as given."""

    @cached_property
    def shares(self) -> dict[str, Fraction]:
        """The exact share of each task: 1/4 and 3/4 for the weights 0.1 and 0.3."""
        weights = {name: Fraction(str(weight)) for name, weight in self.weights.items()}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    def __len__(self) -> int:
        return sum(map(len, self.sources.values()))

    def __getitem__(self, index: int, /) -> Prompt:
        place = int(self._order[index])
        for prompts in self.sources.values():
            if place < len(prompts):
                return prompts[place]
            place -= len(prompts)
        raise AssertionError("the order has a place for each prompt and no more")

    @cached_property
    def _order(self) -> np.ndarray:
        """[len(self)] places in the concatenated sources, in reading order."""
        # The j-th prompt of a task is due when the mixture is (j + 1/2) / share prompts long.
        due = [(np.arange(len(self.sources[name])) + 0.5) / float(share) for name, share in self.shares.items()]
        return np.argsort(np.concatenate(due), kind="stable")


def mixture(tasks: Mapping[str, tuple[Rows, float]]) -> Mixture:
    """Mixes tasks: `mixture({"geometry": (geometry, 3), "charts": (charts, 1)})` draws three of four prompts from geometry.

    Args:
        tasks: The prompts and the weight of each task, by its name in `by_task` and in the metrics. The name replaces the `task` of
            its prompts. Tasks may have different columns, with or without images. Weights are normalised to a sum of 1.

    Raises:
        ValueError: If there are no tasks; or if one is no pair, has no prompts, or a weight that is not above 0 and finite.
    """
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(
            f"mixture needs tasks, such as {{'geometry': (prompts, 3), 'charts': (prompts, 1)}}, got {tasks!r}"
        )
    sources: dict[str, Prompts] = {}
    for name, pair in tasks.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"a task of a mixture must have a name, got {name!r}")
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(
                f"task {name!r} of a mixture must be a pair (prompts, weight), got a {type(pair).__name__}"
            )
        rows, weight = pair
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < weight < math.inf:
            raise ValueError(
                f"the weight of task {name!r} must be > 0 and finite, got {weight!r}: to leave a task out, do not name it"
            )
        sources[name] = prompts_from(rows).of_task(name)
        if not sources[name]:
            raise ValueError(f"task {name!r} has 0 prompts: check its split and its filters")
    return Mixture(sources=sources, weights={name: float(weight) for name, (_, weight) in tasks.items()})


def sources_of(prompts: Rows) -> dict[str, Prompts]:
    """Returns the tasks of a mixture. Other prompts are one source, with the name `""`."""
    return dict(prompts.sources) if isinstance(prompts, Mixture) else {"": prompts_from(prompts)}


def shrunk(prompts: Rows, fit: Fit) -> Rows:
    """Returns the prompts, or the mixture, with pictures no larger than the policy sees them; see `Prompts.shrunk`."""
    if isinstance(prompts, Mixture):
        return replace(prompts, sources={name: source.shrunk(fit) for name, source in prompts.sources.items()})
    return prompts_from(prompts).shrunk(fit)


def rounds(prompts: Rows, limit: int) -> Iterator[list[Prompt]]:
    """Yields the first readable prompt of each source, then the second of each that has one, and so on, `limit` at most."""
    each = (islice(readable(source), limit) for source in sources_of(prompts).values())
    for row in zip_longest(*each):
        yield [prompt for prompt in row if prompt is not None]


def minibatch_sizes(num_prompts: int, num_minibatches: int) -> list[int]:
    """Returns the number of a step's prompts in each of its minibatches: as equal as possible, and possibly 0."""
    bounds = np.linspace(0, num_prompts, num_minibatches + 1).round().astype(int)
    sizes: list[int] = np.diff(bounds).tolist()
    return sizes


class Stream(Protocol):
    """Endless batches of prompts that resume exactly: a `PromptStream`, or a `MixedStream`."""

    @property
    def skipped(self) -> int:
        """Prompts skipped because they could not be read or were refused."""

    def next_batch(self) -> list[Prompt]:
        """Draws the prompts of the next step."""

    def source(self, prompt: Prompt) -> str:
        """Returns the source of a prompt."""

    def next_of(self, source: str) -> Prompt:
        """Draws one more prompt of a source, to replace another one."""

    def state(self) -> dict[str, Any]:
        """Returns the cursor, for JSON."""

    def without(self, state: Mapping[str, Any], used: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Returns a cursor from which prompts that were used ahead of it, by source and id, do not come again."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state that `state()` returned. Raises a ValueError if it belongs to other prompts."""


def open_stream(
    prompts: Rows, *, batch_size: int, num_minibatches: int = 1, seed: int, accept: Accept | None = None
) -> Stream:
    """Opens the stream of prompts: a `MixedStream` for a `Mixture`, else a `PromptStream`.

    Args:
        prompts: The prompts.
        batch_size: Prompts of a step.
        num_minibatches: Minibatches of a step. Each has the ratio of a mixture.
        seed: Seeds the order.
        accept: Returns the reason to refuse a prompt.

    Raises:
        ValueError: If there are no prompts, or a number is out of range.
    """
    if isinstance(prompts, Mixture):
        return MixedStream(prompts, batch_size=batch_size, num_minibatches=num_minibatches, seed=seed, accept=accept)
    return PromptStream(prompts, batch_size=batch_size, seed=seed, accept=accept)


class MixedStream:
    """Endless batches of a mixture, with its ratio in every minibatch.

    Each task has its own `PromptStream`, shuffled and endless. A small task starts its next epoch while a large one is in its
    first. If share × minibatch is no whole number, it is rounded down or up, up first for the task that is furthest below its
    share. So the totals follow the ratio in a run of any length.
    """

    def __init__(
        self, mixed: Mixture, *, batch_size: int, num_minibatches: int, seed: int, accept: Accept | None = None
    ) -> None:
        """Starts at the first batch; see `open_stream`."""
        if not 1 <= num_minibatches <= batch_size:
            raise ValueError(f"num_minibatches must be from 1 to batch_size = {batch_size}, got {num_minibatches}")
        self._mixture, self._seed = mixed, seed
        self._sizes = minibatch_sizes(batch_size, num_minibatches)
        self._given = dict.fromkeys(mixed.sources, 0)
        self._streams = {
            name: PromptStream(
                prompts,
                batch_size=math.ceil(mixed.shares[name] * batch_size),
                seed=_seed_of(seed, name),
                accept=accept,
            )
            for name, prompts in mixed.sources.items()
        }
        for name, share in mixed.shares.items():
            if share * batch_size < 1:
                logger.warning(
                    "task %r gets a prompt in only one of %.3g steps: raise its weight or the prompts of a step",
                    name,
                    float(1 / (share * batch_size)),
                )

    @property
    def skipped(self) -> int:
        """As in `PromptStream`, summed over all tasks."""
        return sum(stream.skipped for stream in self._streams.values())

    def plan(self) -> str:
        """Returns one sentence with the share of each task, and its number of prompts in a minibatch."""
        parts = []
        for name, share in self._mixture.shares.items():
            least, most = (math.floor(share * min(self._sizes)), math.ceil(share * max(self._sizes)))
            counts = f"{least}" if least == most else f"{least} to {most}"
            parts.append(f"{name} {float(share):.4g} ({counts} of a minibatch)")
        total, sizes = sum(self._mixture.weights.values()), sorted(set(self._sizes))
        normalised = "" if total == 1 else f"; the weights, of sum {total:.4g}, are normalised"
        return f"mixture in minibatches of {' or '.join(map(str, sizes))}: {', '.join(parts)}{normalised}"

    def next_batch(self) -> list[Prompt]:
        """Draws the prompts of the next step, minibatch by minibatch, with the tasks evenly spread in each.

        Raises:
            ValueError: If no prompt of a task can be used.
        """
        counts = [self._next_counts(size) for size in self._sizes]
        # A step's prompts of a task are drawn at once, so that none comes twice while there are enough.
        drawn = {
            name: iter(stream.next_batch(sum(each[name] for each in counts))) for name, stream in self._streams.items()
        }
        return [next(drawn[name]) for each in counts for name in _spread(each)]

    def source(self, prompt: Prompt) -> str:
        """Returns a prompt's task."""
        return prompt.task

    def next_of(self, source: str) -> Prompt:
        """Draws one more prompt of a task, to replace another one. The ratio does not count it."""
        return self._streams[source].next_of("")

    def state(self) -> dict[str, Any]:
        """Returns the cursor, for JSON. A stream that restores it continues with the same batches."""
        tasks = {
            name: {"share": str(share), "given": self._given[name], "stream": self._streams[name].state()}
            for name, share in self._mixture.shares.items()
        }
        return {"seed": self._seed, "tasks": tasks}

    def without(self, state: Mapping[str, Any], used: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Returns a cursor from which prompts that were used ahead of it do not come again; see `PromptStream.without`."""
        tasks = {
            name: task
            | {"stream": self._streams[name].without(task["stream"], [each for each in used if each[0] == name])}
            for name, task in state["tasks"].items()
        }
        return {**state, "tasks": tasks}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state that `state()` returned.

        Raises:
            ValueError: If the state belongs to no mixture, or to one with other tasks, order, shares, sizes or seed.
        """
        if "tasks" not in state:
            raise ValueError("the saved prompt order belongs to no mixture: resume with the prompts of the saved run")
        theirs = {name: task["share"] for name, task in state["tasks"].items()}
        ours = {name: str(share) for name, share in self._mixture.shares.items()}
        for name, saved, current in (
            ("seed", state["seed"], self._seed),
            ("shares", list(theirs.items()), list(ours.items())),
        ):
            if saved != current:
                raise ValueError(
                    f"the saved mixture has {name} {_as_text(saved)}, this run has {_as_text(current)}: resume with the mixture "
                    "and seed of the saved run"
                )
        for name, task in state["tasks"].items():
            try:
                self._streams[name].restore(task["stream"])
            except ValueError as error:
                raise ValueError(f"task {name!r}: {error}") from error
            self._given[name] = task["given"]

    def _next_counts(self, size: int) -> dict[str, int]:
        """Returns the number of prompts of each task in the next minibatch: share × size, rounded down or up."""
        shares, total = self._mixture.shares, sum(self._given.values()) + size
        counts = {name: math.floor(share * size) for name, share in shares.items()}
        deficits = {name: shares[name] * total - self._given[name] - counts[name] for name in shares}
        rounded = [name for name in shares if shares[name] * size > counts[name]]
        for name in sorted(rounded, key=deficits.__getitem__, reverse=True)[: size - sum(counts.values())]:
            counts[name] += 1
        for name, count in counts.items():
            self._given[name] += count
        return counts


def _seed_of(seed: int, name: str) -> int:
    """Returns the seed of a task's order. With one seed, two tasks over the same rows would draw the same rows in a batch."""
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    return crc32(f"{seed}/{name}".encode())


def _spread(counts: Mapping[str, int]) -> list[str]:
    """Returns the names, each as often as its count, evenly spread: 4 of a and 2 of b are a b a a b a."""
    places = [((j + 0.5) / count, name) for name, count in counts.items() for j in range(count)]
    return [name for _, name in sorted(places, key=lambda place: place[0])]


def _as_text(value: Any) -> str:
    return ", ".join(f"{name} {share}" for name, share in value) if isinstance(value, list) else str(value)
