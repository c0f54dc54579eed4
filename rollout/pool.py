"""All engines as one, for callers in any thread: generation, weight updates, replacement of what fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import ray

from rollout.config import Backend, RolloutConfig
from rollout.dispatch import Dispatcher, Engine
from rollout.mirrors import Mirrors
from rollout.remote_engine import RemoteEngine, get, told
from rollout.types import EngineFailed, Group, Prompt, Sampling

T = TypeVar("T")


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
    ) -> None:
        self.config = config
        _require_resources(config)
        self._backend, self._model = backend, model
        self._choices = {
            "banned_ids": list(banned_ids),
            "policy_version": policy_version,
            "lora_rank": lora_rank,
            "tell_experts": tell_experts,
        }
        self._client = RayEngineClient(config=config)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        self._dispatcher: Dispatcher | None = None
        engines = [self._new_engine() for _ in range(config.num_engines)]
        try:
            for engine in engines:
                engine.has_started(get(engine.starting))
        except BaseException:
            self._close(engines)
            raise
        self.run(self._open(engines))

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
        return [engine for engine in self.dispatcher.engines if isinstance(engine, RemoteEngine)]

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
                    self.dispatcher.generate(prompt, sampling, list(prompt_seeds), policy_version)
                    for prompt, prompt_seeds in zip(prompts, seeds, strict=True)
                )
            )

        return self.run(groups())

    def connect(self, connect: Callable[[RayEngineClient], RayEngineClient]) -> None:
        """Opens the way for weights.

        Args:
            connect: Introduces the engines to the learner; returns the client that it used, wherever that was.
        """
        self._client.engines = self.engines
        self._client = connect(self._client)

    def sync(
        self, version: int, send: Callable[[int, RayEngineClient], tuple[dict[str, float], RayEngineClient]]
    ) -> dict[str, float]:
        """Has new weights sent to all engines; those that fail on the way are replaced.

        Args:
            version: Of the new weights.
            send: Sends them through the client that it is given; returns its metrics and the client.

        Returns:
            `sync/` metrics.
        """
        self.run(self._no_sync.acquire())
        try:
            self._client.engines, self._client.lost = self.engines, {}
            metrics, self._client = send(version, self._client)
            lost = dict(self._client.lost)
        finally:
            self._loop.call_soon_threadsafe(self._no_sync.release)
        self.run(self._fail(lost))
        return metrics

    async def _fail(self, reasons: Mapping[str, str]) -> None:
        for engine in self.engines:
            if engine.name in reasons:
                self.dispatcher.fail(engine, reasons[engine.name])

    def metrics(self) -> dict[str, float]:
        """`time/engine_idle`, the share of the engines' time since the last call without anything to do, and
        `rollout/engine_failures`, all that were replaced so far."""

        async def take() -> dict[str, float]:
            return {
                "time/engine_idle": self.dispatcher.take_idle_share(),
                "rollout/engine_failures": float(self.dispatcher.num_failures),
            }

        return self.run(take())

    def close(self) -> None:
        """Ends every engine and its processes."""
        engines = self.engines
        self.run(self.dispatcher.close())
        self._close(engines)

    def _close(self, engines: Sequence[RemoteEngine]) -> None:
        closing = [engine.close() for engine in engines]
        ray.wait(closing, num_returns=len(closing), timeout=20)
        for engine in engines:
            self.run(engine.destroy())
        self._client.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _new_engine(self) -> RemoteEngine:
        return RemoteEngine(self._model, self.config, backend=self._backend, choices=self._choices)

    async def _start_engine(self) -> Engine:
        """Starts a replacement, and gives it the weights that the others have."""
        engine = self._new_engine()
        try:
            engine.has_started(await engine.starting)
            async with self._no_sync:
                await asyncio.to_thread(self._client.introduce, engine)
        except ray.exceptions.RayError as error:
            await engine.destroy()
            raise told(error) from error
        except BaseException:
            await engine.destroy()
            raise
        return engine


@dataclass(kw_only=True)
class RayEngineClient:
    """Drives weight updates on all engines; vLLM's `VLLMWeightSyncClient`, used in the learner's process.

    Engines on the learner's node map its slab, those on other nodes a mirror of it. An engine that fails in an update is left out
    of the rest of it.

    Attributes:
        config: The engines' choices.
        engines: The engines to update.
        lost: How engines have failed in this update, by their names.
        next_version: The version that the next update commits.
        version: The version that the last update has committed; None before the first.
    """

    config: RolloutConfig
    engines: Sequence[RemoteEngine] = ()
    lost: dict[str, str] = field(default_factory=dict)
    next_version: int = 0
    version: int | None = None

    def __post_init__(self) -> None:
        self._init_info: dict[str, Any] | None = None
        self._mirrors: Mirrors | None = None
        self._adapter: ray.ObjectRef | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Tells each engine where its weights will come from."""
        self._init_info = init_info
        if "path" in init_info:
            home = ray.get_runtime_context().get_node_id()
            self._mirrors = Mirrors(home=home, path=init_info["path"], nbytes=init_info["nbytes"])
        width = max(1, self.config.gpus_per_engine)
        get(
            [
                engine.actor.init_weight_transfer_engine.remote(self._info_for(engine, i * width))
                for i, engine in enumerate(self.engines)
            ]
        )

    def _info_for(self, engine: RemoteEngine, rank: int) -> dict[str, Any]:
        """What an engine is told: the slab's path on its node, or its first rank among those that NCCL connects."""
        assert self._init_info is not None
        info = dict(self._init_info)
        if self._mirrors is not None:
            info["path"] = self._mirrors.path_on(engine.node)
        elif "rank_offset" in info:
            info["rank_offset"] += rank
        return info

    def introduce(self, engine: RemoteEngine) -> None:
        """Gives a replacement what the others have had: the way to the weights, and those that the last update committed.

        Raises:
            RuntimeError: If its weights cannot come from here; by NCCL and CUDA IPC only the learner can send.
        """
        if self._adapter is not None:
            get(engine.actor.load_adapter.remote(self._adapter, self.version))
            return
        if self._init_info is None:
            return
        if self._mirrors is None:
            raise RuntimeError("an engine that gets its weights by nccl or ipc cannot be replaced during a run")
        get(engine.actor.init_weight_transfer_engine.remote(self._info_for(engine, 0)))
        if self.version is not None:
            get(engine.actor.start_weight_update.remote())
            get(engine.actor.update_weights.remote({}))
            get(engine.actor.finish_weight_update.remote(self.version))

    def start_weight_update(self) -> None:
        """Prepares every engine."""
        self._on_all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Brings the slab to other nodes, then has every engine load."""
        if self._mirrors is not None:
            self._mirrors.refresh()
        self._on_all("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Commits the update on every engine as `next_version`."""
        version = self.next_version if weight_version is None else int(weight_version)
        self._on_all("finish_weight_update", version)
        self.version = version

    def load_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        """Brings adapters to every engine, once to each node."""
        self._adapter = ray.put(dict(files))
        self._on_all("load_adapter", self._adapter, version)
        self.version = version

    def close(self) -> None:
        """Ends the mirrors."""
        if self._mirrors is not None:
            self._mirrors.close()

    def _on_all(self, method: str, *args: Any) -> None:
        """Calls a method of every engine that has not failed yet.

        Raises:
            RuntimeError: If it fails on an engine that lives on.
        """
        calls = {
            getattr(engine.actor, method).remote(*args): engine.name
            for engine in self.engines
            if engine.name not in self.lost
        }
        if not calls:
            return
        done, silent = ray.wait(list(calls), num_returns=len(calls), timeout=self.config.engine_timeout)
        for call in silent:
            self.lost[calls[call]] = (
                f"{method} took longer than {self.config.engine_timeout:g} s (rollout.engine_timeout)"
            )
        for call in done:
            try:
                get(call)
            except EngineFailed as error:
                self.lost[calls[call]] = str(error)


def _require_resources(config: RolloutConfig) -> None:
    have = ray.cluster_resources()
    for kind, each in (("CPU", config.threads_per_engine), ("GPU", config.gpus_per_engine)):
        if config.num_engines * each > have.get(kind, 0):
            raise ValueError(
                f"rollout.num_engines = {config.num_engines} engines of {each} {kind}s need {config.num_engines * each}, "
                f"Ray has {have.get(kind, 0):g}: lower num_engines, or start Ray on more machines"
            )
