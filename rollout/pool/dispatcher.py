"""Which engine answers what: one queue in front of all engines, and what happens when an engine fails.

No Ray and no vLLM in here: engines are whatever has three methods, so that a simulation can have hundreds.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol

from rollout.types import CannotReplace, EngineFailed, Group, Prompt, Request, Response, Sampling

logger = logging.getLogger(__name__)

MOST_LOST = 10
"""Engines that may fail while they answer one group: then it is not the engines."""
PINGS_PER_TIMEOUT = 4
"""How often an engine is asked for a sign of life within the time that it may stay silent."""


class Engine(Protocol):
    """What the dispatcher needs of an engine. Each method raises `EngineFailed` if the engine is beyond help."""

    def generate(
        self, request: Request, sampling: Sampling, seeds: Mapping[int, int], policy_version: int
    ) -> AsyncIterator[Response]:
        """Yields one response per seed as they are done; leaves out those that a weight sync has aborted."""

    async def ping(self) -> None:
        """Returns when the engine has shown that it is at work."""

    async def destroy(self) -> None:
        """Ends the engine and all that it has started, whatever state it is in."""


@dataclass(slots=True, eq=False)
class Home:
    """The engine that has read what siblings, or the turns of an episode, begin with; the dispatcher notes it here."""

    engine: Engine | None = None


@dataclass(slots=True, eq=False)
class _Job:
    """One request on its way: the seeds still to be answered, and the responses so far."""

    request: Request
    home: Home
    sampling: Sampling
    seeds: dict[int, int]
    policy_version: int
    priority: tuple[int, ...]
    future: asyncio.Future[Group]
    engines_lost: int = 0
    responses: dict[int, Response] = field(default_factory=dict)

    def __lt__(self, other: _Job) -> bool:
        return self.priority < other.priority

    def take(self, response: Response) -> None:
        if self.seeds.pop(response.index, None) is not None:
            self.responses[response.index] = response

    def group(self) -> Group:
        responses = [self.responses[index] for index in sorted(self.responses)]
        return Group(
            prompt=self.request.prompt,
            prompt_token_ids=responses[0].prompt_token_ids,
            completions=[response.completion for response in responses],
            prompt_routed_experts=responses[0].prompt_routed_experts,
        )


@dataclass(slots=True, eq=False)
class _Seat:
    """A place for an engine; without one while a replacement starts."""

    engine: Engine | None = None
    num_running: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    watch: asyncio.Task[None] | None = None
    failures_in_a_row: int = 0
    busy_seconds: float = 0.0
    busy_since: float | None = None

    def has_room(self, completions: int, capacity: int) -> bool:
        """Whether an engine is there that may take so many more; one without any may, however many they are."""
        if self.engine is None:
            return False
        return not self.num_running or self.num_running + completions <= capacity

    def add(self, completions: int) -> None:
        """Counts the completions that the engine works at, and the time in which there are any."""
        self.num_running += completions
        now = time.perf_counter()
        if self.busy_since is not None:
            self.busy_seconds += now - self.busy_since
        self.busy_since = now if self.num_running else None


class Dispatcher:
    """Spreads groups over engines. All of it happens in one event loop.

    Groups wait in one queue, earlier batches first, and in a batch episodes that have begun, then long prompts. The engine with the
    fewest completions takes the next group as soon as it has room for it; siblings go to one engine, which reads their prompt once,
    and so do the turns of an episode while that engine has room. An engine that fails is destroyed and replaced, and what it had
    not finished goes back into the queue, with its seeds.

    Args:
        start_engine: Starts an engine with the present weights.
        engines: Those that have started.
        capacity: Completions that one engine works at.
        timeout: Seconds that an engine may stay silent before it counts as hanging.
        max_failures: Failures in one engine's place, without a single completion between them, after which all waiting groups
            fail.
    """

    def __init__(
        self,
        start_engine: Callable[[], Awaitable[Engine]],
        engines: Sequence[Engine],
        *,
        capacity: int,
        timeout: float,
        max_failures: int,
    ) -> None:
        self._start_engine = start_engine
        self._capacity, self._timeout, self._max_failures = capacity, timeout, max_failures
        self._queue: list[_Job] = []
        self._jobs: set[_Job] = set()
        self._number = count()
        self._seats = [_Seat() for _ in engines]
        self._background: set[asyncio.Task[None]] = set()
        self._destroying: set[asyncio.Task[None]] = set()
        self._end: RuntimeError | None = None
        self._idle_from = time.perf_counter()
        self.num_failures = 0
        for seat, engine in zip(self._seats, engines, strict=True):
            self._occupy(seat, engine)

    @property
    def engines(self) -> list[Engine]:
        """Those at work."""
        return [seat.engine for seat in self._seats if seat.engine is not None]

    @property
    def end(self) -> RuntimeError | None:
        """Why no engine will answer any more; None as long as they do."""
        return self._end

    async def generate(
        self,
        request: Request,
        sampling: Sampling,
        seeds: Sequence[int],
        policy_version: int,
        *,
        batch: int = 0,
        home: Home | None = None,
    ) -> Group:
        """Samples one completion per seed.

        Args:
            request: What to go on from.
            sampling: Temperature and length.
            seeds: [G] one for each completion.
            policy_version: The oldest version that may answer.
            batch: Groups of a smaller number go first.
            home: What other requests with the same beginning are given too.

        Returns:
            The completions; `prompt_token_ids` has the whole request, with what has been said since the prompt.

        Raises:
            RuntimeError: If engines fail again and again; the message is the last one's own.
        """
        if self._end is not None:
            raise self._end
        future: asyncio.Future[Group] = asyncio.get_running_loop().create_future()
        job = _Job(
            request=request,
            home=home or Home(),
            sampling=sampling,
            seeds=dict(enumerate(seeds)),
            policy_version=policy_version,
            priority=(batch, int(not request.has_begun), -prompt_size(request.prompt), next(self._number)),
            future=future,
        )
        self._jobs.add(job)
        future.add_done_callback(lambda _: self._jobs.discard(job))
        self._enqueue(job)
        return await future

    def take_idle_share(self) -> float:
        """Share of the engines' time since the last call in which they had nothing to do."""
        now = time.perf_counter()
        for seat in self._seats:
            seat.add(0)
        busy = sum(seat.busy_seconds for seat in self._seats)
        total = (now - self._idle_from) * len(self._seats)
        self._idle_from = now
        for seat in self._seats:
            seat.busy_seconds = 0.0
        return max(0.0, 1.0 - busy / total)

    def fail(self, engine: Engine, reason: str) -> None:
        """Destroys an engine and has it replaced; its groups go back into the queue."""
        seat = next((seat for seat in self._seats if seat.engine is engine), None)
        if seat is None:
            return
        seat.engine = None
        for task in [*seat.tasks, *([seat.watch] if seat.watch else [])]:
            if task is not asyncio.current_task():
                task.cancel()
        seat.watch = None
        self._keep(self._replace(seat, engine, reason))

    async def settled(self) -> None:
        """Returns when no engine is being replaced, or none will be any more."""
        while self._background:
            await asyncio.wait(self._background)

    async def close(self) -> None:
        """Ends what is going on; the engines are the caller's."""
        self._give_up(RuntimeError("the engines are being closed"))
        watches = [seat.watch for seat in self._seats if seat.watch]
        tasks = [*self._background, *watches, *(task for seat in self._seats for task in seat.tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._destroying, return_exceptions=True)

    def _enqueue(self, job: _Job) -> None:
        heapq.heappush(self._queue, job)
        if self._queue[0] is job or self._queue[0].future.done():  # else the first one has found no room
            self._assign()

    def _assign(self, only: _Seat | None = None) -> None:
        """Hands out as much of the queue as the engines have room for.

        Args:
            only: The one engine that has got more room since the last call, to look at no other in vain; None where any may have.
        """
        while self._queue:
            job = self._queue[0]
            if job.future.done():
                heapq.heappop(self._queue)
                only = None
                continue
            seats = self._seats if only is None else [only]
            free = [seat for seat in seats if seat.has_room(len(job.seeds), self._capacity)]
            if not free:
                return
            only = None  # the next in the queue may be smaller, and fit elsewhere
            heapq.heappop(self._queue)
            at_home = [seat for seat in free if seat.engine is job.home.engine]
            seat = at_home[0] if at_home else min(free, key=lambda seat: seat.num_running)
            assert seat.engine is not None
            job.home.engine = seat.engine
            task = asyncio.create_task(self._work(seat, seat.engine, job))
            seat.tasks.add(task)
            # Not at the end of `_work`: a task that is cancelled before it has begun never gets there.
            task.add_done_callback(partial(self._take_stock, seat, job))
            seat.add(len(job.seeds))

    async def _work(self, seat: _Seat, engine: Engine, job: _Job) -> None:
        """Has an engine answer what is left of a group."""
        try:
            async for response in engine.generate(job.request, job.sampling, dict(job.seeds), job.policy_version):
                job.take(response)
                seat.failures_in_a_row = 0
                seat.add(-1)
                self._assign(seat)
        except EngineFailed as error:
            self.fail(engine, str(error))
        except Exception as error:  # not the engine's fault: whoever waits for the group is told
            if not job.future.done():
                job.future.set_exception(error)

    def _take_stock(self, seat: _Seat, job: _Job, task: asyncio.Task[None]) -> None:
        """Sees what has become of a group when an engine is done with it, in whatever way."""
        seat.tasks.discard(task)
        seat.add(-len(job.seeds))
        if seat.engine is None:
            job.engines_lost += 1
        if job.future.done():
            pass
        elif not job.seeds:
            job.future.set_result(job.group())
        elif job.engines_lost > MOST_LOST:
            job.future.set_exception(
                RuntimeError(
                    f"{job.engines_lost} engines have failed while they answered prompt {job.request.prompt.id!r}, each time among "
                    "others: look at what is special about it"
                )
            )
        else:
            self._enqueue(job)
        self._assign()

    def _occupy(self, seat: _Seat, engine: Engine) -> None:
        seat.engine = engine
        seat.watch = asyncio.create_task(self._watch(engine))

    async def _watch(self, engine: Engine) -> None:
        """Asks an engine for signs of life, as long as it gives them."""
        while True:
            await asyncio.sleep(self._timeout / PINGS_PER_TIMEOUT)
            try:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes just when the answer does.
                async with asyncio.timeout(self._timeout):
                    await engine.ping()
            except TimeoutError:
                self.fail(engine, f"it gave no sign of life for {self._timeout:g} s (rollout.engine_timeout)")
                return
            except Exception as error:
                self.fail(engine, str(error))
                return

    async def _replace(self, seat: _Seat, engine: Engine, reason: str) -> None:
        """Tries until an engine starts, or too many have failed in a row."""
        self._count_failure(seat)
        await self._destroy(engine)
        while seat.failures_in_a_row <= self._max_failures:
            logger.warning("an engine failed and is replaced: %s", reason)
            try:
                self._occupy(seat, await self._start_engine())
            except CannotReplace as error:
                self._give_up(CannotReplace(f"{error}. The engine failed so: {reason}"))
                return
            except Exception as error:
                reason = str(error)
                self._count_failure(seat)
            else:
                self._assign()
                return
        self._give_up(
            RuntimeError(
                f"{seat.failures_in_a_row} engines failed in a row in one place without a completion; the last one: {reason}\n"
                "Its last words are in Ray's session logs; the usual reason is memory (lower rollout.kv_cache_gib, "
                "rollout.gpu_memory_utilization or rollout.max_model_len)"
            )
        )

    def _count_failure(self, seat: _Seat) -> None:
        self.num_failures += 1
        seat.failures_in_a_row += 1

    async def _destroy(self, engine: Engine) -> None:
        """Ends an engine, also where nobody waits for it any more."""
        task = asyncio.ensure_future(engine.destroy())
        self._destroying.add(task)
        task.add_done_callback(self._destroying.discard)
        await asyncio.shield(task)

    def _give_up(self, error: RuntimeError) -> None:
        self._end = error
        for job in list(self._jobs):
            if not job.future.done():
                job.future.set_exception(error)
        self._queue.clear()

    def _keep(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def prompt_size(prompt: Prompt) -> int:
    """How long a prompt is, roughly: characters of its text, and four for each token of 32 × 32 pixels, of video in two frames."""
    text = 0
    for message in prompt.messages:
        content = message.get("content") or ""
        text += len(content) if isinstance(content, str) else sum(len(part.get("text") or "") for part in content)
    pixels = 0
    for image in prompt.images:
        with suppress(AttributeError):
            pixels += image.width * image.height
    for video in prompt.videos:
        num_frames, height, width, _ = video.frames.shape
        pixels += num_frames * height * width // 2
    return text + 4 * pixels // 1024
