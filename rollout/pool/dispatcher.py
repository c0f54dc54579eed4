"""One queue in front of all engines: assigns requests, and replaces engines that fail.

This module uses neither Ray nor vLLM. An engine is any object with three methods, so a simulation can have hundreds.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Protocol

from rollout.types import EngineFailed, GenerateCall, Group, Prompt, Response

logger = logging.getLogger(__name__)

MAX_ENGINES_LOST = 10
"""Engines that may fail while they answer one group. After more, the group is taken for the cause."""
PINGS_PER_TIMEOUT = 4
"""Pings of an engine within the time after which it counts as hanging."""


class Engine(Protocol):
    """An engine as the dispatcher uses it. Each method raises `EngineFailed` if the engine's process is dead."""

    def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        """Yields one response per seed as they finish, except those that a weight sync has aborted."""

    async def ping(self) -> None:
        """Returns when the engine has responded."""

    async def destroy(self) -> None:
        """Ends the engine and all that it has started, in any state."""


@dataclass(slots=True, eq=False)
class PrefixAffinity:
    """The engine that has cached the common prefix of some requests: of siblings, or of an episode's turns.

    The dispatcher sets it, and sends requests with the same affinity to the same engine.
    """

    engine: Engine | None = None
    """The engine of the last request; None before the first."""


@dataclass(slots=True, eq=False)
class _Job:
    """One call in the queue or at an engine."""

    call: GenerateCall
    """The call, with all seeds."""
    affinity: PrefixAffinity
    """Prefers the engine with the same prefix."""
    seeds: dict[int, int]
    """The seeds without a response so far, by index."""
    priority: tuple[int, ...]
    """Smaller ones go first."""
    future: asyncio.Future[Group]
    """The result."""
    engines_lost: int = 0
    """Engines that failed at this job."""
    responses: dict[int, Response] = field(default_factory=dict)
    """The responses so far, by index."""

    def __lt__(self, other: _Job) -> bool:
        return self.priority < other.priority

    def add(self, response: Response) -> None:
        if self.seeds.pop(response.index, None) is not None:
            self.responses[response.index] = response

    def group(self) -> Group:
        """Returns the finished group."""
        responses = [self.responses[index] for index in sorted(self.responses)]
        return Group(
            prompt=self.call.request.prompt,
            prompt_token_ids=responses[0].prompt_token_ids,
            completions=[response.completion for response in responses],
            prompt_routed_experts=responses[0].prompt_routed_experts,
        )

    def remaining_call(self) -> GenerateCall:
        """Returns the call with the unanswered seeds alone."""
        return replace(self.call, seeds=dict(self.seeds))


@dataclass(slots=True, eq=False)
class EngineSlot:
    """The place of one engine; empty while a replacement starts."""

    engine: Engine | None = None
    """The engine, if it has started."""
    num_running: int = 0
    """Completions that it works at."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """One for each job that it works at."""
    watch: asyncio.Task[None] | None = None
    """Pings the engine."""
    failures_in_a_row: int = 0
    """Failures since the last completion."""
    busy_seconds: float = 0.0
    """Seconds with at least one completion since the last `take_idle_share`."""
    busy_since: float | None = None
    """When the engine last got busy; None while it is idle."""

    def has_room(self, completions: int, capacity: int) -> bool:
        """True if the engine may take so many more completions. An idle engine accepts a group of any size."""
        if self.engine is None:
            return False
        return not self.num_running or self.num_running + completions <= capacity

    def add(self, completions: int) -> None:
        """Changes the number of running completions, and measures the busy time."""
        self.num_running += completions
        now = time.perf_counter()
        if self.busy_since is not None:
            self.busy_seconds += now - self.busy_since
        self.busy_since = now if self.num_running else None


class Dispatcher:
    """Distributes groups over engines, in one event loop.

    All groups wait in one queue: earlier batches first, and in a batch first continued episodes, then long prompts. The engine with
    the fewest completions takes the next group as soon as it has room. Siblings go to one engine, which reads their prompt once.
    So do the turns of an episode, while that engine has room. An engine that fails is destroyed and replaced. Its unfinished work
    goes back into the queue, with the same seeds.

    Args:
        start_engine: Starts an engine with the current weights in the place of one that has failed.
        engines: The engines that have started.
        capacity: Completions that one engine works at.
        timeout: Seconds without a response after which an engine counts as hanging.
        max_failures: Failures in one slot without a completion in between, after which all waiting groups fail.
    """

    def __init__(
        self,
        start_engine: Callable[[Engine], Awaitable[Engine]],
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
        self._slots = [EngineSlot() for _ in engines]
        self._background: set[asyncio.Task[None]] = set()
        self._destroying: set[asyncio.Task[None]] = set()
        self._fatal_error: RuntimeError | None = None
        self._idle_from = time.perf_counter()
        self.num_failures = 0
        for slot, engine in zip(self._slots, engines, strict=True):
            self._assign_engine(slot, engine)

    @property
    def engines(self) -> list[Engine]:
        """The engines that are running."""
        return [slot.engine for slot in self._slots if slot.engine is not None]

    @property
    def fatal_error(self) -> RuntimeError | None:
        """The error after which no engine responds any more; None before."""
        return self._fatal_error

    async def generate(self, call: GenerateCall, *, batch: int = 0, affinity: PrefixAffinity | None = None) -> Group:
        """Samples one completion per seed.

        Args:
            call: The request, its sampling and its seeds.
            batch: Groups of a smaller number go first.
            affinity: Shared with other requests that have the same prefix.

        Returns:
            The completions. `prompt_token_ids` has the whole request, the history included.

        Raises:
            RuntimeError: If engines fail repeatedly. The message is the last one's.
        """
        if self._fatal_error is not None:
            raise self._fatal_error
        future: asyncio.Future[Group] = asyncio.get_running_loop().create_future()
        request = call.request
        job = _Job(
            call=call,
            affinity=affinity or PrefixAffinity(),
            seeds=dict(call.seeds),
            priority=(batch, int(not request.is_continuation), -prompt_size(request.prompt), next(self._number)),
            future=future,
        )
        self._jobs.add(job)
        future.add_done_callback(lambda _: self._jobs.discard(job))
        self._enqueue(job)
        return await future

    def take_idle_share(self) -> float:
        """Returns the share of the engines' time since the last call in which they were idle."""
        now = time.perf_counter()
        for slot in self._slots:
            slot.add(0)
        busy = sum(slot.busy_seconds for slot in self._slots)
        total = (now - self._idle_from) * len(self._slots)
        self._idle_from = now
        for slot in self._slots:
            slot.busy_seconds = 0.0
        return max(0.0, 1.0 - busy / total)

    def fail(self, engine: Engine, reason: str) -> None:
        """Destroys an engine and replaces it. Its groups go back into the queue."""
        slot = next((slot for slot in self._slots if slot.engine is engine), None)
        if slot is None:
            return
        slot.engine = None
        for task in [*slot.tasks, *([slot.watch] if slot.watch else [])]:
            if task is not asyncio.current_task():
                task.cancel()
        slot.watch = None
        self._run_in_background(self._replace(slot, engine, reason))

    async def wait_for_replacements(self) -> None:
        """Returns when no engine is being replaced."""
        while self._background:
            await asyncio.wait(self._background)

    async def close(self) -> None:
        """Ends all work. The caller closes the engines."""
        self._shut_down(RuntimeError("the engines are being closed"))
        watches = [slot.watch for slot in self._slots if slot.watch]
        tasks = [*self._background, *watches, *(task for slot in self._slots for task in slot.tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._destroying, return_exceptions=True)

    def _enqueue(self, job: _Job) -> None:
        heapq.heappush(self._queue, job)
        if self._queue[0] is job or self._queue[0].future.done():  # else the first one has already found no room
            self._assign()

    def _assign(self, only: EngineSlot | None = None) -> None:
        """Starts as many jobs of the queue as the engines have room for.

        Args:
            only: The one slot that has more room since the last call, so that no other is searched; None if any may have.
        """
        while self._queue:
            job = self._queue[0]
            if job.future.done():
                heapq.heappop(self._queue)
                only = None
                continue
            slots = self._slots if only is None else [only]
            free = [slot for slot in slots if slot.has_room(len(job.seeds), self._capacity)]
            if not free:
                return
            only = None  # the next job may be smaller, and fit elsewhere
            heapq.heappop(self._queue)
            preferred = [slot for slot in free if slot.engine is job.affinity.engine]
            slot = preferred[0] if preferred else min(free, key=lambda slot: slot.num_running)
            assert slot.engine is not None
            job.affinity.engine = slot.engine
            task = asyncio.create_task(self._work(slot, slot.engine, job))
            slot.tasks.add(task)
            # Not at the end of `_work`: a task that is cancelled before it starts never gets there.
            task.add_done_callback(partial(self._on_call_done, slot, job))
            job.future.add_done_callback(partial(_cancel_too, task))
            slot.add(len(job.seeds))

    async def _work(self, slot: EngineSlot, engine: Engine, job: _Job) -> None:
        """Generates the remaining completions of a group on an engine."""
        try:
            async for response in engine.generate(job.remaining_call()):
                job.add(response)
                slot.failures_in_a_row = 0
                slot.add(-1)
                self._assign(slot)
        except EngineFailed as error:
            self.fail(engine, str(error))
        except Exception as error:  # not the engine's fault, so only the group's caller gets it
            if not job.future.done():
                job.future.set_exception(error)

    def _on_call_done(self, slot: EngineSlot, job: _Job, task: asyncio.Task[None]) -> None:
        """Finishes a group, or puts it back into the queue, after an engine has ended its work at it."""
        slot.tasks.discard(task)
        slot.add(-len(job.seeds))
        if slot.engine is None:
            job.engines_lost += 1
        if job.future.done():
            pass
        elif not job.seeds:
            job.future.set_result(job.group())
        elif job.engines_lost > MAX_ENGINES_LOST:
            job.future.set_exception(
                RuntimeError(
                    f"{job.engines_lost} engines have failed while they answered prompt {job.call.request.prompt.id!r}, each "
                    "time among others: check what is special about it"
                )
            )
        else:
            self._enqueue(job)
        self._assign()

    def _assign_engine(self, slot: EngineSlot, engine: Engine) -> None:
        slot.engine = engine
        slot.watch = asyncio.create_task(self._watch(engine))

    async def _watch(self, engine: Engine) -> None:
        """Pings an engine regularly, and fails it if it does not respond."""
        while True:
            await asyncio.sleep(self._timeout / PINGS_PER_TIMEOUT)
            try:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the result.
                async with asyncio.timeout(self._timeout):
                    await engine.ping()
            except TimeoutError:
                self.fail(engine, f"it did not respond for {self._timeout:g} s (rollout.engine_timeout)")
                return
            except Exception as error:
                self.fail(engine, str(error))
                return

    async def _replace(self, slot: EngineSlot, engine: Engine, reason: str) -> None:
        """Starts engines until one succeeds, or too many have failed in a row."""
        self._count_failure(slot)
        await self._destroy(engine)
        while slot.failures_in_a_row <= self._max_failures:
            logger.warning("an engine failed and is replaced: %s", reason)
            try:
                self._assign_engine(slot, await self._start_engine(engine))
            except Exception as error:
                reason = str(error)
                self._count_failure(slot)
            else:
                self._assign()
                return
        self._shut_down(
            RuntimeError(
                f"{slot.failures_in_a_row} engines failed in a row in one place without a completion; the last one: {reason}\n"
                "Its last output is in Ray's session logs; the usual reason is memory (lower rollout.kv_cache_gib, "
                "rollout.gpu_memory_utilization or rollout.max_model_len)"
            )
        )

    def _count_failure(self, slot: EngineSlot) -> None:
        self.num_failures += 1
        slot.failures_in_a_row += 1

    async def _destroy(self, engine: Engine) -> None:
        """Ends an engine, even if the caller is cancelled."""
        task = asyncio.ensure_future(engine.destroy())
        self._destroying.add(task)
        task.add_done_callback(self._destroying.discard)
        await asyncio.shield(task)

    def _shut_down(self, error: RuntimeError) -> None:
        self._fatal_error = error
        for job in list(self._jobs):
            if not job.future.done():
                job.future.set_exception(error)
        self._queue.clear()

    def _run_in_background(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _cancel_too(task: asyncio.Task[None], future: asyncio.Future[Group]) -> None:
    """Ends an engine's work at a group that nobody waits for any more."""
    if future.cancelled():
        task.cancel()


def prompt_size(prompt: Prompt) -> int:
    """Returns the rough size of a prompt in characters. A token of 32 × 32 pixels, or of two such video frames, counts four."""
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
