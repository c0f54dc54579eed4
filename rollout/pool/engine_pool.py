"""All engines as one, for callers in any thread: generation, weight updates, replacement of what fails."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any, Literal, TypeVar, cast

import ray

from rollout.cluster import Gpu, cluster_nodes, describe_nodes, require_room
from rollout.config import Backend, RolloutConfig
from rollout.environments.episodes import Episodes
from rollout.pool.dispatcher import Dispatcher, Engine
from rollout.pool.engine_actor import RemoteEngine
from rollout.ray_calls import ray_get, readable_error
from rollout.types import CannotReplace, EngineFailed, Group, Prompt, Request, Sampling
from rollout.weights.update import RayEngineClient

T = TypeVar("T")
RESUME = "go on from the newest checkpoint with --resume auto"


def request_seed(run_seed: int, step: int, prompt_id: str, sample: int) -> int:
    """The seed of one request: the same for the same question asked at the same place of the run, on any engine."""
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


class RolloutPool:
    """The engines, and the event loop in which they are spoken to.

    Args:
        model: A folder or hub name that every engine's node can read.
        config: The engines' choices.
        backend: How new weights arrive.
        banned_ids: Tokens that are never sampled.
        policy_version: The version of the weights in `model`.
        lora_rank: Of the adapters that will come in place of weights; 0 where weights will come.
        tell_experts: Whether completions are to carry the experts that a MoE chose; on GPUs alone.
        episodes: Makes what plays episodes with the engines; None where prompts are answered in one turn.
        gpus: Of the learner's ranks, where engines share them; empty where they have their own, or none.
        teaches: As `RolloutEngine` has it.

    Raises:
        ValueError: If the Ray cluster has too few CPUs or GPUs for the engines.
        RuntimeError: If an engine does not start; the message is its own.
    """

    def __init__(
        self,
        model: str | Path,
        config: RolloutConfig,
        *,
        backend: Backend,
        banned_ids: Sequence[int],
        policy_version: int,
        lora_rank: int = 0,
        tell_experts: bool = False,
        episodes: Callable[[Dispatcher], Episodes] | None = None,
        gpus: Sequence[Gpu] = (),
        teaches: str | Path | None = None,
    ) -> None:
        self.config = config
        require_room(cluster_nodes(), config)
        self._backend, self._model = backend, model
        self._choices = {
            "banned_ids": list(banned_ids),
            "policy_version": policy_version,
            "lora_rank": lora_rank,
            "tell_experts": tell_experts,
            "teaches": teaches,
        }
        self._gpus, self._make_episodes = gpus, episodes
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        self._dispatcher: Dispatcher | None = None
        self._failures_before = 0
        try:
            self._begin()
        except BaseException:
            self._stop_loop()
            raise

    def _begin(self) -> None:
        """Starts all engines."""
        width, self._client = self.config.gpus_per_engine, RayEngineClient(config=self.config)
        engines = [
            self._new_engine(self._gpus[i * width : (i + 1) * width] if self._gpus else ())
            for i in range(self.config.num_engines)
        ]
        try:
            self._wait_until_started(engines)
        except BaseException:
            self._end(engines)
            raise
        self.run(self._open(engines))
        self._asleep = False
        self._episodes = self._make_episodes(self.dispatcher) if self._make_episodes else None

    def restart(self) -> None:
        """Ends all engines and starts as many anew, with the weights that the first ones started with; to be connected again.

        Raises:
            RuntimeError: If an engine does not start; the message is its own.
        """
        self._failures_before += self.dispatcher.num_failures
        self.run(self.dispatcher.close())
        self._end(self.engines)
        self._begin()

    def _wait_until_started(self, engines: Sequence[RemoteEngine]) -> None:
        """Returns when all have started, or raises what the first one to fail says."""
        waiting = {engine.starting: engine for engine in engines}
        deadline = time.monotonic() + self.config.start_timeout
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RuntimeError(f"{len(waiting)} of {len(engines)} engines {self._late()}")
            for call in ready:
                waiting.pop(call).has_started(ray_get(call))

    async def _in_time(self, waiting: Awaitable[T], seconds: float, late: str) -> T:
        """What comes of a wait for a replacement.

        Raises:
            EngineFailed: If it takes longer; says so in the words of `late`.
        """
        try:
            async with asyncio.timeout(seconds) as timer:
                return await waiting
        except TimeoutError:
            if timer.expired():
                raise EngineFailed(f"its replacement {late}") from None
            raise

    def _late(self) -> str:
        """What to say of engines that do not start."""
        return (
            f"did not start within rollout.start_timeout = {self.config.start_timeout:g} s: Ray has "
            f"{describe_nodes(cluster_nodes())}; end what else works there, or give them more time"
        )

    async def _open(self, engines: Sequence[Engine]) -> None:
        self._no_sync = asyncio.Lock()
        self._dispatcher = Dispatcher(
            self._start_engine,
            engines,
            capacity=self.config.max_running,
            timeout=self.config.engine_timeout,
            max_failures=self.config.max_failures,
        )

    @property
    def dispatcher(self) -> Dispatcher:
        """The queue in front of the engines; to be used within `start` and `run`."""
        assert self._dispatcher is not None
        return self._dispatcher

    @property
    def engines(self) -> list[RemoteEngine]:
        """Those at work."""
        return cast(list[RemoteEngine], self.dispatcher.engines)  # as `_start_engine` makes them

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Has a coroutine run in the engines' event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The same, and waits for its result."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[Group]:
        """One group per prompt, in order; waits for all.

        Args:
            prompts: The questions.
            sampling: Temperature and length.
            seeds: One list per prompt, one seed for each completion.
            policy_version: The oldest version that may answer.

        Raises:
            RuntimeError: If engines fail again and again, or hold an older version; the message is the last one's own.
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
        """One group, by one turn or by episodes; to be used within `start` and `run`.

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
        return await self.dispatcher.generate(Request(prompt=prompt), sampling, seeds, policy_version, batch=batch)

    def connect(self, connect: Callable[[RayEngineClient], RayEngineClient]) -> None:
        """Opens the way for weights.

        Args:
            connect: Introduces the engines to the learner; returns the client that it used, wherever that was.
        """
        self._client.engines = [engine.address for engine in self.engines]
        self._client = connect(self._client)

    def sync(
        self, version: int, send: Callable[[int, RayEngineClient], tuple[dict[str, float], RayEngineClient]]
    ) -> dict[str, float]:
        """Has new weights sent to all engines, which wake up for it; those that fail on the way are replaced.

        Args:
            version: Of the new weights.
            send: Sends them through the client that it is given; returns its metrics and the client.

        Returns:
            `sync/` metrics, and `time/wake` in seconds where engines sleep.

        Raises:
            RuntimeError: If engines are lost that cannot be replaced.
        """
        self._require_engines()
        self.run(self._no_sync.acquire())
        try:
            seconds = self._wake("weights")
            self._client.engines, self._client.lost = [engine.address for engine in self.engines], {}
            metrics, self._client = self._unless_the_end_comes(lambda: send(version, self._client))
            lost = dict(self._client.lost)
        finally:
            self._loop.call_soon_threadsafe(self._no_sync.release)
        self.run(self._fail(lost))
        if self._asleep:
            metrics = {**metrics, "time/wake": seconds + self._wake("kv_cache")}
            self._asleep = False
        return metrics

    def sleep(self) -> None:
        """Has engines that share the learner's GPUs give their memory away until the next sync; others know no sleep.

        Raises:
            RuntimeError: If one of them fails.
        """
        if self.config.shares_gpus:
            self.run(self._on_all(lambda engine: engine.sleep()))
            self._asleep = True

    def _wake(self, part: Literal["weights", "kv_cache"]) -> float:
        """Has engines that sleep take memory for a part of what they had; returns the seconds that it took."""
        start = time.perf_counter()
        if self._asleep:
            self.run(self._on_all(lambda engine: engine.wake(part)))
        return time.perf_counter() - start

    async def _on_all(self, do: Callable[[RemoteEngine], Awaitable[None]]) -> None:
        """Has all engines do something that none may fail in."""

        async def on_one(engine: RemoteEngine) -> None:
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
        await self.dispatcher.settled()
        self._require_engines()

    def _unless_the_end_comes(self, send: Callable[[], T]) -> T:
        """What a call returns, or the end of all engines: by NCCL a learner waits forever for an engine that has died."""
        if self._backend == "shared_memory":
            return send()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(send())
            except BaseException as error:
                future.set_exception(error)

        Thread(target=run, name="sync", daemon=True).start()
        while not wait([future], timeout=1).done:
            if self.dispatcher.end is not None:
                raise RuntimeError(f"{self.dispatcher.end}\nIt was lost in a weight sync, with the learner: {RESUME}")
        return future.result()

    def _require_engines(self) -> None:
        if self.dispatcher.end is not None:
            raise self.dispatcher.end

    async def _fail(self, reasons: Mapping[str, str]) -> None:
        for engine in self.engines:
            if engine.name in reasons:
                self.dispatcher.fail(engine, reasons[engine.name])

    def metrics(self) -> dict[str, float]:
        """`time/engine_idle`, the share of the engines' time since the last call without anything to do, and
        `rollout/engine_failures`, engines that died, hung or did not start, so far."""

        async def take() -> dict[str, float]:
            return {
                "time/engine_idle": self.dispatcher.take_idle_share(),
                "rollout/engine_failures": float(self._failures_before + self.dispatcher.num_failures),
            }

        return self.run(take())

    def close(self) -> None:
        """Ends every engine and its processes."""
        self.run(self.dispatcher.close())
        self._end(self.engines)
        self._stop_loop()

    def _end(self, engines: Sequence[RemoteEngine]) -> None:
        """Ends engines in good order where they still know any, and clears away what is left of them."""
        closing = [engine.close() for engine in engines if engine.belongings is not None]
        ray.wait(closing, num_returns=len(closing), timeout=20)
        for engine in engines:
            self.run(engine.destroy())
        self._client.close()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _new_engine(self, gpus: Sequence[Gpu] = ()) -> RemoteEngine:
        return RemoteEngine(self._model, self.config, backend=self._backend, choices=self._choices, gpus=gpus)

    async def _start_engine(self) -> Engine:
        """Starts a replacement, and gives it the weights that the others have.

        Raises:
            CannotReplace: If they can only come from the learner, or its GPU is not free.
        """
        if self.config.shares_gpus:
            raise CannotReplace("An engine that shares its GPU with the learner cannot be replaced alone")
        if self._backend == "nccl" and not self._choices["lora_rank"]:
            raise CannotReplace(
                "An engine that gets its weights by NCCL cannot be replaced alone (with weight_transfer shared_memory it can)"
            )
        engine = self._new_engine()
        try:
            engine.has_started(await self._in_time(engine.starting, self.config.start_timeout, self._late()))
            async with self._no_sync:
                # A process that dies in a weight update leaves vLLM, which waits for it, without an answer.
                limit = self.config.engine_timeout
                late = f"took longer than {limit:g} s to load weights (rollout.engine_timeout)"
                await self._in_time(asyncio.to_thread(self._client.introduce, engine.address), limit, late)
        except ray.exceptions.RayError as error:
            await engine.destroy()
            raise readable_error(error) from error
        except BaseException:
            await engine.destroy()
            raise
        return engine
