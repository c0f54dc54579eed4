"""Batched Ray calls between driver and engine: one call sends all pending requests, one returns all finished responses.

A call through Ray costs the driver at least half a millisecond, however little it carries. So all requests of one round of the
driver's event loop go in one call, and one call at a time waits for the responses since the last. Under load it returns more.

Experts of responses are too large for the driver. Each response's are one more result of the call, which the driver does not fetch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeAlias

import numpy as np

from rollout.pool.stored_experts import has_experts, take_experts, with_reference
from rollout.ray_calls import picklable_error, readable_error
from rollout.types import GenerateCall, Response

NumberedCall: TypeAlias = tuple[int, GenerateCall]
"""A call and the number that its replies carry."""
Reply: TypeAlias = Response | Exception | None
"""A reply to a call: its responses one by one, then None; or an error."""


class Generates(Protocol):
    """The one method of an engine that a `CallServer` uses."""

    def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        """See `VllmEngine.generate`."""


class CallServer:
    """The engine's end: runs calls, and keeps their replies until they are polled.

    Args:
        engine: The engine that runs the calls.
    """

    def __init__(self, engine: Generates) -> None:
        self._engine = engine
        self._replies: list[tuple[int, Reply]] = []
        self._has_replies = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def submit(self, calls: Sequence[NumberedCall]) -> None:
        """Starts calls."""
        for number, call in calls:
            task = self._tasks[number] = asyncio.ensure_future(self._run(number, call))
            # Not at the end of `_run`: a task that is cancelled before it starts never gets there.
            task.add_done_callback(partial(self._forget, number))

    async def poll(self) -> list[tuple[int, Reply]]:
        """Waits for replies and returns all that there are, each with the number of its call."""
        await self._has_replies.wait()
        replies, self._replies = self._replies, []
        self._has_replies.clear()
        return replies

    async def poll_storing(self) -> AsyncIterator[np.ndarray | list[tuple[int, Reply]]]:
        """Polls. Yields the experts of one response after another, and at last the replies, in the same order and without them."""
        replies: list[tuple[int, Reply]] = []
        for number, reply in await self.poll():
            if has_experts(reply):
                reply, experts = take_experts(reply)
                yield experts
            replies.append((number, reply))
        yield replies

    def cancel(self, number: int) -> None:
        """Ends a call whose caller no longer waits for it."""
        if task := self._tasks.get(number):
            task.cancel()

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]

    async def _run(self, number: int, call: GenerateCall) -> None:
        try:
            async for response in self._engine.generate(call):
                # A group has its prompt's experts once, from the response with the smallest index.
                is_first = response.index == min(call.seeds)
                self._reply(number, response if is_first else replace(response, prompt_routed_experts=None))
            self._reply(number, None)
        except Exception as error:
            self._reply(number, picklable_error(error))

    def _reply(self, number: int, reply: Reply) -> None:
        self._replies.append((number, reply))
        self._has_replies.set()


class CallClient:
    """The driver's end, for one event loop.

    Args:
        actor: A Ray actor with the methods `submit`, `poll`, `poll_storing` and `cancel` of a `CallServer`.
        stores_experts: True if responses have experts, which then stay where the actor is.
    """

    def __init__(self, actor: Any, *, stores_experts: bool = False) -> None:
        self._actor, self._stores_experts = actor, stores_experts
        self._numbers = count()
        self._waiting: dict[int, asyncio.Queue[Reply]] = {}
        self._unsent: dict[int, GenerateCall] = {}
        self._polling: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        """See `VllmEngine.generate`."""
        number = next(self._numbers)
        replies = self._waiting[number] = asyncio.Queue()
        self._send(number, call)
        is_over = False
        try:
            while not is_over:
                reply = await replies.get()
                is_over = not isinstance(reply, Response)
                if isinstance(reply, Exception):
                    raise reply
                if reply is not None:
                    yield reply
        finally:
            del self._waiting[number]
            is_unsent = self._unsent.pop(number, None) is not None
            if not is_unsent and not is_over:
                self._actor.cancel.remote(number)

    async def close(self) -> None:
        """Stops waiting for replies."""
        tasks = [*self._sending, *([self._polling] if self._polling else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _send(self, number: int, call: GenerateCall) -> None:
        if not self._unsent:
            task = asyncio.ensure_future(self._send_all())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        self._unsent[number] = call
        if self._polling is None or self._polling.done():
            self._polling = asyncio.ensure_future(self._poll())

    async def _send_all(self) -> None:
        """Sends all calls that were added since the event loop's last round."""
        calls, self._unsent = list(self._unsent.items()), {}
        try:
            await self._actor.submit.remote(calls)
        except Exception as error:
            self._fail([number for number, _ in calls], error)

    async def _poll(self) -> None:
        """Passes replies to their callers as long as the actor lives."""
        try:
            while True:
                for number, reply in await self._next_replies():
                    if number in self._waiting:
                        self._waiting[number].put_nowait(reply)
        except Exception as error:
            self._fail(list(self._waiting), error)

    async def _next_replies(self) -> list[tuple[int, Reply]]:
        if not self._stores_experts:
            return await self._actor.poll.remote()
        results = self._actor.poll_storing.remote()
        # To await the results one by one would fetch them (Ray 2.60). When all are there, each is a mere reference.
        await results.completed()
        *experts, replies = results
        refs = iter(experts)
        return [
            (number, with_reference(reply, next(refs)) if has_experts(reply) else reply)
            for number, reply in await replies
        ]

    def _fail(self, numbers: Sequence[int], error: Exception) -> None:
        for number in numbers:
            if number in self._waiting:
                self._waiting[number].put_nowait(readable_error(error))
