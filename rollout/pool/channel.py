"""What goes between the driver and an engine's actor: orders one way, answers the other, in each call as many as there are.

A call through Ray costs the driver half a millisecond and more, however little it carries. So all orders of one round of the
driver's event loop go in one call, and one call at a time waits for what has been answered since the last: under load it brings
the more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeAlias

from rollout.ray_calls import picklable_error, readable_error
from rollout.types import Request, Response, Sampling

Answer: TypeAlias = Response | Exception | None
"""What comes of an order: its responses one by one, then None; or an error."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """One call of an engine's `generate`; `number` is how its answers are told from others'."""

    number: int
    request: Request
    sampling: Sampling
    seeds: Mapping[int, int]
    policy_version: int


class Generates(Protocol):
    """What an outbox needs of an engine."""

    def generate(
        self, request: Request, sampling: Sampling, seeds: Mapping[int, int], policy_version: int
    ) -> AsyncIterator[Response]:
        """See `RolloutEngine.generate`."""


class Outbox:
    """The engine's end: has orders worked at, and keeps what comes of them until it is fetched.

    Args:
        engine: What works at them.
    """

    def __init__(self, engine: Generates) -> None:
        self._engine = engine
        self._answers: list[tuple[int, Answer]] = []
        self._has_answers = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def take(self, orders: Sequence[Order]) -> None:
        """Begins with orders."""
        for order in orders:
            task = self._tasks[order.number] = asyncio.ensure_future(self._work(order))
            # Not at the end of `_work`: a task that is cancelled before it has begun never gets there.
            task.add_done_callback(partial(self._forget, order.number))

    async def fetch(self) -> list[tuple[int, Answer]]:
        """Waits for answers and returns all that there are, each with the number of its order."""
        await self._has_answers.wait()
        answers, self._answers = self._answers, []
        self._has_answers.clear()
        return answers

    def drop(self, number: int) -> None:
        """Ends the work at an order that nobody waits for any more."""
        if task := self._tasks.get(number):
            task.cancel()

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]

    async def _work(self, order: Order) -> None:
        try:
            async for response in self._engine.generate(
                order.request, order.sampling, order.seeds, order.policy_version
            ):
                self._tell(order.number, response)
            self._tell(order.number, None)
        except Exception as error:
            self._tell(order.number, picklable_error(error))

    def _tell(self, number: int, answer: Answer) -> None:
        self._answers.append((number, answer))
        self._has_answers.set()


class Channel:
    """The driver's end. All of it happens in one event loop.

    Args:
        actor: Has `take`, `fetch` and `drop` of an `Outbox`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._numbers = count()
        self._waiting: dict[int, asyncio.Queue[Answer]] = {}
        self._unsent: list[Order] = []
        self._receiving: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def generate(
        self, request: Request, sampling: Sampling, seeds: Mapping[int, int], policy_version: int
    ) -> AsyncIterator[Response]:
        """See `RolloutEngine.generate`."""
        order = Order(
            number=next(self._numbers), request=request, sampling=sampling, seeds=seeds, policy_version=policy_version
        )
        answers = self._waiting[order.number] = asyncio.Queue()
        self._send(order)
        is_over = False
        try:
            while not is_over:
                answer = await answers.get()
                is_over = not isinstance(answer, Response)
                if isinstance(answer, Exception):
                    raise answer
                if answer is not None:
                    yield answer
        finally:
            del self._waiting[order.number]
            if order in self._unsent:
                self._unsent.remove(order)
            elif not is_over:
                self._actor.drop.remote(order.number)

    async def close(self) -> None:
        """Waits for no more answers."""
        tasks = [*self._sending, *([self._receiving] if self._receiving else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _send(self, order: Order) -> None:
        if not self._unsent:
            task = asyncio.ensure_future(self._send_all())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        self._unsent.append(order)
        if self._receiving is None or self._receiving.done():
            self._receiving = asyncio.ensure_future(self._receive())

    async def _send_all(self) -> None:
        """Sends what has come up since the event loop's last round."""
        orders, self._unsent = self._unsent, []
        try:
            await self._actor.take.remote(orders)
        except Exception as error:
            self._fail([order.number for order in orders], error)

    async def _receive(self) -> None:
        """Hands answers out as long as the actor lives."""
        try:
            while True:
                for number, answer in await self._actor.fetch.remote():
                    if number in self._waiting:
                        self._waiting[number].put_nowait(answer)
        except Exception as error:
            self._fail(list(self._waiting), error)

    def _fail(self, numbers: Sequence[int], error: Exception) -> None:
        for number in numbers:
            if number in self._waiting:
                self._waiting[number].put_nowait(readable_error(error))
