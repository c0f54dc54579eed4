"""All engines as one, for callers in any thread: generation, weight syncs, replacement of engines that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from threading import Thread
from typing import Any, Literal, TypeVar, cast

import ray

from rollout.cluster import Gpu, cluster_nodes, describe_nodes, require_room, require_room_for_one
from rollout.engine.spec import EngineSpec
from rollout.pool.dispatcher import Dispatcher, Engine
from rollout.pool.engine_actor import EngineHandle
from rollout.processes import NodeProcesses
from rollout.ray_calls import EngineAddress, ray_answer, ray_get
from rollout.types import EngineFailed, GenerateCall, Group, PlaysGroups, Prompt, Request, Sampling
from rollout.weights.update import PublishedWeights, SyncReport, load_published

T = TypeVar("T")
Send = Callable[[int, Sequence[EngineAddress]], SyncReport]
"""Sends the learner's weights as a version to the engines at these addresses."""
ROOM_CHECKED_EVERY = 10.0
"""Seconds between checks that Ray has room for an engine that has not started yet."""


class EnginePool:
    """The engines, and the event loop that calls them.

    Args:
        spec: How each engine is started.
        episodes: Makes the player of episodes, given the queue in front of the engines; None for prompts with one turn.
        gpus: GPUs of the learner's ranks, if the engines share them; else empty.

    Raises:
        ValueError: If the Ray cluster has too few CPUs or GPUs for the engines.
        RuntimeError: If an engine does not start. The message is the engine's.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        episodes: Callable[[Dispatcher], PlaysGroups] | None = None,
        gpus: Sequence[Gpu] = (),
    ) -> None:
        self.config = spec.config
        require_room(cluster_nodes(), self.config)
        self._spec, self._gpus, self._make_episodes = spec, gpus, episodes
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        self._dispatcher: Dispatcher | None = None
        self._published: PublishedWeights | None = None
        self._asleep = self._holds_weights = False
        try:
            self._start_engines()
        except BaseException:
            self._stop_loop()
            raise

    def _start_engines(self) -> None:
        """Starts all engines."""
        width = self.config.workers_per_engine
        engines = [
            EngineHandle(self._spec, self._gpus[i * width : (i + 1) * width] if self._gpus else ())
            for i in range(self.config.num_engines)
        ]
        try:
            self._wait_until_started(engines)
        except BaseException:
            self._end(engines)
            raise
        self.run(self._open(engines))
        self._episodes = self._make_episodes(self.dispatcher) if self._make_episodes else None

    def _wait_until_started(self, engines: Sequence[EngineHandle]) -> None:
        """Returns when all engines have started. Raises the error of the first that fails."""
        waiting = {engine.starting: engine for engine in engines}
        deadline = time.monotonic() + self.config.start_timeout
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RuntimeError(f"{len(waiting)} of {len(engines)} engines {self._timeout_message()}")
            for call in ready:
                waiting.pop(call).has_started(ray_get(call))

    async def _with_deadline(self, waiting: Awaitable[T], seconds: float, message: str) -> T:
        """Waits for a step of a replacement.

        Raises:
            EngineFailed: If it takes longer; with `message`.
        """
        try:
            async with asyncio.timeout(seconds) as timer:
                return await waiting
        except TimeoutError:
            if timer.expired():
                raise EngineFailed(f"its replacement {message}") from None
            raise

    def _timeout_message(self) -> str:
        """Returns the error message of engines that do not start."""
        return (
            f"did not start within rollout.start_timeout = {self.config.start_timeout:g} s: Ray has "
            f"{describe_nodes(cluster_nodes())}; end what else runs there, or raise the timeout"
        )

    async def _open(self, engines: Sequence[Engine]) -> None:
        # Held while the learner's weights change or are sent, and while a replacement loads them.
        self._weights = asyncio.Lock()
        self._dispatcher = Dispatcher(
            self._start_replacement,
            engines,
            capacity=self.config.max_running,
            timeout=self.config.engine_timeout,
            max_failures=self.config.max_failures,
        )

    @property
    def dispatcher(self) -> Dispatcher:
        """The queue in front of the engines, for use within `start` and `run`."""
        assert self._dispatcher is not None
        return self._dispatcher

    @property
    def engines(self) -> list[EngineHandle]:
        """The engines that are running."""
        return cast(list[EngineHandle], self.dispatcher.engines)  # `_start_replacement` returns handles

    @property
    def addresses(self) -> list[EngineAddress]:
        """The addresses of the engines that are running."""
        return [engine.address for engine in self.engines]

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine in the engines' event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the engines' event loop and returns its result."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[Group]:
        """Returns one group per prompt, in order, when all are finished.

        Args:
            prompts: The questions.
            sampling: Temperature and length.
            seeds: One list per prompt, one seed for each completion.
            policy_version: The oldest version that may answer.

        Raises:
            RuntimeError: If engines fail repeatedly, or hold an older version. The message is the last engine's.
        """

        async def groups() -> list[Group]:
            return await asyncio.gather(
                *(
                    self.answer(prompt, sampling, list(prompt_seeds), policy_version)
                    for prompt, prompt_seeds in zip(prompts, seeds, strict=True)
                )
            )

        return self.run(groups())

    async def answer(
        self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int, *, batch: int = 0
    ) -> Group:
        """Returns one group, of single turns or of episodes. For use within `start` and `run`.

        Args:
            prompt: The question.
            sampling: Temperature and length.
            seeds: [G] one for each completion.
            policy_version: The oldest version that may answer.
            batch: Groups of a smaller number go first.

        Raises:
            RuntimeError: As `generate`.
        """
        if self._episodes is not None:
            return await self._episodes.group(prompt, sampling, seeds, policy_version, batch=batch)
        call = GenerateCall(
            request=Request(prompt=prompt),
            sampling=sampling,
            seeds=dict(enumerate(seeds)),
            policy_version=policy_version,
        )
        return await self.dispatcher.generate(call, batch=batch)

    def connect(self, connect: Callable[[Sequence[EngineAddress]], None]) -> None:
        """Connects the engines to a learner, by a function that opens the weight transfer to the engines at these addresses."""
        connect(self.addresses)

    def detach(self) -> None:
        """Lets go of a learner that has failed. Its last weights are of no use, so replacements of engines wait for the next sync.

        Engines that share its GPUs free their memory.

        Raises:
            RuntimeError: If engines have failed repeatedly.
        """
        self._hold_weights()
        self._close_published()
        self._sleep()

    def sync(self, version: int, send: Send) -> dict[str, float]:
        """Sends new weights to all engines, which wake up for it. Engines that fail in the sync are replaced.

        Args:
            version: Version of the new weights.
            send: Sends the learner's weights to the engines at these addresses and commits them as this version. A replacement
                that cannot load them otherwise gets them by a call of its own, in another thread, before the next `sleep`.

        Returns:
            `sync/` metrics, and `time/wake` in seconds if the engines were asleep.

        Raises:
            RuntimeError: If engines have failed repeatedly.
        """
        self._require_engines()
        self._hold_weights()
        try:
            seconds = self._wake("weights")
            report = send(version, self.addresses)
            self._published, self._send = report.published, send
            self.run(self._fail(report.failures))
            metrics = dict(report.metrics)
            if self._asleep:
                metrics["time/wake"] = seconds + self._wake("kv_cache")
                self._asleep = False
        finally:
            self._holds_weights = False
            self._loop.call_soon_threadsafe(self._weights.release)
        return metrics

    def _hold_weights(self) -> None:
        """Lets no replacement load weights from now on: it would miss a change. Waits for those that do."""
        if not self._holds_weights:
            self.run(self._weights.acquire())
            self._holds_weights = True

    def sleep(self) -> None:
        """Leaves the learner and the GPUs that engines share with it to training, until the next sync.

        Engines that share its GPUs free their memory. By NCCL and CUDA IPC weights come from the learner, so a replacement waits.

        Raises:
            RuntimeError: If engines have failed repeatedly.
        """
        if self._spec.backend == "shared_memory":
            return
        self._hold_weights()
        self._sleep()

    def _sleep(self) -> None:
        if self.config.shares_gpus:
            self.run(self._on_all(lambda engine: engine.sleep()))
            self._asleep = True

    def _wake(self, part: Literal["weights", "kv_cache"]) -> float:
        """Makes sleeping engines take memory for a part of their state. Returns the seconds that it took."""
        start = time.perf_counter()
        if self._asleep:
            self.run(self._on_all(lambda engine: engine.wake(part)))
        return time.perf_counter() - start

    async def _on_all(self, do: Callable[[EngineHandle], Awaitable[None]]) -> None:
        """Runs an operation on all engines. Those that fail are replaced later."""

        async def on_one(engine: EngineHandle) -> None:
            try:
                async with asyncio.timeout(self.config.engine_timeout):
                    await do(engine)
            except TimeoutError:
                limit = self.config.engine_timeout
                self.dispatcher.fail(
                    engine, f"it took longer than {limit:g} s to sleep or wake (rollout.engine_timeout)"
                )
            except EngineFailed as error:
                self.dispatcher.fail(engine, str(error))

        await asyncio.gather(*(on_one(engine) for engine in self.engines))
        self._require_engines()

    def _require_engines(self) -> None:
        if self.dispatcher.fatal_error is not None:
            raise self.dispatcher.fatal_error

    async def _fail(self, failures: Mapping[str, str]) -> None:
        for engine in self.engines:
            if engine.name in failures:
                self.dispatcher.fail(engine, failures[engine.name])

    def metrics(self) -> dict[str, float]:
        """Returns `time/engine_idle` and `rollout/engine_failures`.

        The first is the share of the engines' time since the last call in which they were idle. The second counts all engines that
        died, hung or did not start.
        """

        async def take() -> dict[str, float]:
            return {
                "time/engine_idle": self.dispatcher.take_idle_share(),
                "rollout/engine_failures": float(self.dispatcher.num_failures),
            }

        return self.run(take())

    def close(self) -> None:
        """Ends every engine and its processes."""
        self.run(self.dispatcher.close())
        self._end(self.engines)
        self._stop_loop()

    def _end(self, engines: Sequence[EngineHandle]) -> None:
        """Shuts engines down in good order where they respond, and cleans up the rest."""
        closing = [engine.close() for engine in engines if engine.processes is not None]
        ray.wait(closing, num_returns=len(closing), timeout=20)
        for engine in engines:
            self.run(engine.destroy())
        self._close_published()

    def _close_published(self) -> None:
        if self._published is not None:
            self._published.close()
            self._published = None

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start_replacement(self, lost: Engine) -> Engine:
        """Starts an engine in the place of a lost one, and loads the current weights into it.

        Raises:
            ValueError: If Ray has no room for any engine.
            EngineFailed: If it dies.
            RuntimeError: If it does not start.
        """
        if not await asyncio.to_thread(cluster_nodes):
            raise EngineFailed("Ray has no node left")
        shared_gpus = cast(EngineHandle, lost).gpus
        async with AsyncExitStack() as no_change:
            if shared_gpus:  # they have room while the learner does not train
                await no_change.enter_async_context(self._weights)
            engine = EngineHandle(self._spec, shared_gpus)
            try:
                timeout = self.config.start_timeout
                engine.has_started(await self._with_deadline(self._start(engine), timeout, self._timeout_message()))
                if not shared_gpus:
                    await no_change.enter_async_context(self._weights)
                await self._load_weights(engine)
            except BaseException:
                await engine.destroy()
                raise
        return engine

    async def _start(self, engine: EngineHandle) -> NodeProcesses:
        """Waits for an engine's start. Looks again and again whether Ray has room for it: nodes may have been lost."""
        starting = asyncio.ensure_future(ray_answer(engine.starting))
        try:
            while not (await asyncio.wait({starting}, timeout=ROOM_CHECKED_EVERY))[0]:
                require_room_for_one(await asyncio.to_thread(cluster_nodes), self.config)
            return starting.result()
        finally:
            starting.cancel()

    async def _load_weights(self, engine: EngineHandle) -> None:
        """Loads the weights of the last sync, from where it has published them or by a sync with this engine alone.

        Raises:
            EngineFailed: If the engine dies, or takes too long.
        """
        published = self._published
        if published is None:  # before the first sync those of its folder are current
            return
        if published.has_content:
            limit = self.config.engine_timeout
            late = f"took longer than {limit:g} s to load weights (rollout.engine_timeout)"
            loading = asyncio.to_thread(load_published, engine.address, published)
            await self._with_deadline(loading, limit, late)
            return
        report = await asyncio.to_thread(self._send, published.version, [engine.address])
        if engine.name in report.failures:
            raise EngineFailed(report.failures[engine.name])
