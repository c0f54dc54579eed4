"""Several tasks in every batch, at a fixed ratio in each of its minibatches.

Example:
    prompts = mixture({"geometry": (geometry, 3), "charts": (charts, 1)})
    train(config, prompts=prompts, reward=by_task({"geometry": math_answer, "charts": numeric}))
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice, zip_longest
from numbers import Real
from typing import Any, Protocol
from zlib import crc32

import numpy as np

from rollout.data.prompts import Accept, Prompts, Rows, prompts_from, readable
from rollout.data.stream import PromptStream
from rollout.types import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Tasks to be mixed; made by `mixture`.

    It is also a sequence of all their prompts, each once, in the ratio as long as every task has some left: held-out prompts may
    be a mixture, too, and however few are asked, every task is among them.

    Attributes:
        sources: The prompts of each task, which have its name as their `task`, and before their ids.
        weights: The weight of each task, as it was given.
    """

    sources: Mapping[str, Prompts]
    weights: Mapping[str, float]

    @cached_property
    def shares(self) -> dict[str, Fraction]:
        """The share of each task, exactly: of the weights 0.1 and 0.3, 1/4 and 3/4."""
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
        """[len(self)] places in the sources, one behind the other, as they are read."""
        # The j-th prompt of a task is due when the mixture is (j + 1/2) / share prompts long.
        due = [(np.arange(len(self.sources[name])) + 0.5) / float(share) for name, share in self.shares.items()]
        return np.argsort(np.concatenate(due), kind="stable")


def mixture(tasks: Mapping[str, tuple[Rows, float]]) -> Mixture:
    """Makes a mixture of tasks: `mixture({"geometry": (geometry, 3), "charts": (charts, 1)})` has three of four from geometry.

    Args:
        tasks: The prompts and the weight of each task, by the name that `by_task` and the metrics know it under: it replaces the
            `task` of its prompts. Columns, images and their absence need not be alike. Weights are normalised to a sum of 1.

    Raises:
        ValueError: There are no tasks; one is no pair, has no prompts, or a weight that is not above 0 and finite.
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
    """The tasks of a mixture; what is none is one source, under the name `""`."""
    return dict(prompts.sources) if isinstance(prompts, Mixture) else {"": prompts_from(prompts)}


def rounds(prompts: Rows, limit: int) -> Iterator[list[Prompt]]:
    """Yields the first readable prompt of each source, then the second of each that has one, and so on, `limit` at most."""
    each = (islice(readable(source), limit) for source in sources_of(prompts).values())
    for row in zip_longest(*each):
        yield [prompt for prompt in row if prompt is not None]


def minibatch_sizes(num_prompts: int, num_minibatches: int) -> list[int]:
    """How many of a step's prompts, in order, each of its minibatches takes: equally many, or nearly. Some may take 0."""
    bounds = np.linspace(0, num_prompts, num_minibatches + 1).round().astype(int)
    sizes: list[int] = np.diff(bounds).tolist()
    return sizes


class Stream(Protocol):
    """Endless batches of prompts, exact to resume: a `PromptStream`, or a `MixedStream`."""

    @property
    def skipped(self) -> int:
        """How often a prompt was passed over because it could not be read or was refused."""

    def next_batch(self) -> list[Prompt]:
        """Draws the prompts of the next step."""

    def source(self, prompt: Prompt) -> str:
        """Which source a prompt was drawn from."""

    def next_of(self, source: str) -> Prompt:
        """Draws one more prompt of a source, to take another one's place."""

    def state(self) -> dict[str, Any]:
        """The cursor, for JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes where `state()` was taken; raises a ValueError where that was on other prompts."""


def open_stream(
    prompts: Rows, *, batch_size: int, num_minibatches: int = 1, seed: int, accept: Accept | None = None
) -> Stream:
    """The stream that prompts ask for: mixed where they are a `Mixture`.

    Args:
        prompts: What to draw from.
        batch_size: Prompts of a step.
        num_minibatches: Into how many minibatches a step is divided; of a mixture, each has the ratio.
        seed: Seeds the order.
        accept: Refuses prompts by giving a reason.

    Raises:
        ValueError: There are no prompts, or a number is out of range.
    """
    if isinstance(prompts, Mixture):
        return MixedStream(prompts, batch_size=batch_size, num_minibatches=num_minibatches, seed=seed, accept=accept)
    return PromptStream(prompts, batch_size=batch_size, seed=seed, accept=accept)


class MixedStream:
    """Endless batches of a mixture, every minibatch of each in its ratio.

    Each task has a `PromptStream` of its own, shuffled and endless: a small one begins its next epoch while a large one is at its
    first, never starves and never ends the run. Where share × minibatch is no whole number, a minibatch has the next lower or the
    next higher, whichever task is most behind its share first, so that the totals follow the ratio however long the run is.
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
        """As in `PromptStream`, over all tasks."""
        return sum(stream.skipped for stream in self._streams.values())

    def plan(self) -> str:
        """One sentence with the share of each task, and how many prompts of each minibatch are its."""
        told = []
        for name, share in self._mixture.shares.items():
            least, most = (math.floor(share * min(self._sizes)), math.ceil(share * max(self._sizes)))
            counts = f"{least}" if least == most else f"{least} to {most}"
            told.append(f"{name} {float(share):.4g} ({counts} of a minibatch)")
        total, sizes = sum(self._mixture.weights.values()), sorted(set(self._sizes))
        normalised = "" if total == 1 else f"; the weights, of sum {total:.4g}, are normalised"
        return f"mixture in minibatches of {' or '.join(map(str, sizes))}: {', '.join(told)}{normalised}"

    def next_batch(self) -> list[Prompt]:
        """Draws the prompts of the next step, minibatch by minibatch; in each, tasks are spread evenly.

        Raises:
            ValueError: No prompt of a task can be used.
        """
        counts = [self._next_counts(size) for size in self._sizes]
        # A step's prompts of a task are drawn at once, so that none of them comes twice while there are enough.
        drawn = {
            name: iter(stream.next_batch(sum(each[name] for each in counts))) for name, stream in self._streams.items()
        }
        return [next(drawn[name]) for each in counts for name in _spread(each)]

    def source(self, prompt: Prompt) -> str:
        """A prompt's task."""
        return prompt.task

    def next_of(self, source: str) -> Prompt:
        """Draws one more prompt of a task, to take the place of another one's; the ratio does not count it."""
        return self._streams[source].next_of("")

    def state(self) -> dict[str, Any]:
        """The cursor, for JSON: a stream that restores it gives the batches that this one would give next."""
        tasks = {
            name: {"share": str(share), "given": self._given[name], "stream": self._streams[name].state()}
            for name, share in self._mixture.shares.items()
        }
        return {"seed": self._seed, "tasks": tasks}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes where `state()` was taken.

        Raises:
            ValueError: The state is of no mixture, of other tasks, in another order, of other shares or sizes, or of another seed.
        """
        if "tasks" not in state:
            raise ValueError("the saved prompt order is of no mixture: resume with the prompts of the saved run")
        theirs = {name: task["share"] for name, task in state["tasks"].items()}
        ours = {name: str(share) for name, share in self._mixture.shares.items()}
        for what, was, now in (
            ("seed", state["seed"], self._seed),
            ("shares", list(theirs.items()), list(ours.items())),
        ):
            if was != now:
                raise ValueError(
                    f"the saved mixture has {what} {_told(was)}, this run has {_told(now)}: resume with the mixture and seed of "
                    "the saved run"
                )
        for name, task in state["tasks"].items():
            try:
                self._streams[name].restore(task["stream"])
            except ValueError as error:
                raise ValueError(f"task {name!r}: {error}") from error
            self._given[name] = task["given"]

    def _next_counts(self, size: int) -> dict[str, int]:
        """How many prompts of each task the next minibatch has: share × size, rounded down or up."""
        shares, total = self._mixture.shares, sum(self._given.values()) + size
        counts = {name: math.floor(share * size) for name, share in shares.items()}
        behind = {name: shares[name] * total - self._given[name] - counts[name] for name in shares}
        rounded = [name for name in shares if shares[name] * size > counts[name]]
        for name in sorted(rounded, key=behind.__getitem__, reverse=True)[: size - sum(counts.values())]:
            counts[name] += 1
        for name, count in counts.items():
            self._given[name] += count
        return counts


def _seed_of(seed: int, name: str) -> int:
    """Each task has an order of its own, or two tasks over the same rows would meet in every batch; others do not change it."""
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    return crc32(f"{seed}/{name}".encode())


def _spread(counts: Mapping[str, int]) -> list[str]:
    """The names, each as often as it counts, evenly: 4 of a and 2 of b are a b a a b a."""
    places = [((j + 0.5) / count, name) for name, count in counts.items() for j in range(count)]
    return [name for _, name in sorted(places, key=lambda place: place[0])]


def _told(value: Any) -> str:
    return ", ".join(f"{name} {share}" for name, share in value) if isinstance(value, list) else str(value)
