"""Weight updates on all engines, driven from the learner's rank 0, and the loading of published weights by a replacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from rollout.config import RolloutConfig
from rollout.ray_calls import EngineAddress, ray_get
from rollout.types import EngineFailed
from rollout.weights.slab_replicas import SlabReplicas


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """The weights of the last sync, as a replacement loads them. NCCL and CUDA IPC publish nothing."""

    version: int
    """Version of the weights."""
    init_info: Mapping[str, Any] | None = None
    """The slab's layout, by `shared_memory`."""
    replicas: SlabReplicas | None = None
    """The slab on each node, by `shared_memory`."""
    adapter: ray.ObjectRef | None = None
    """The files of LoRA's adapters, if adapters are sent instead of weights."""

    def close(self) -> None:
        """Ends the slab's replicas."""
        if self.replicas is not None:
            self.replicas.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """The result of one weight sync."""

    metrics: Mapping[str, float]
    """`sync/` metrics."""
    failures: Mapping[str, str]
    """Engine name -> why it failed in this sync."""
    published: PublishedWeights
    """The new weights, for replacements."""


def load_published(engine: EngineAddress, published: PublishedWeights | None) -> None:
    """Loads the weights of the last sync into a replacement; nothing before the first sync.

    Raises:
        EngineFailed: If the engine dies.
    """
    if published is None:
        return
    if published.adapter is not None:
        ray_get(engine.call("load_adapter", published.adapter, published.version))
        return
    assert published.init_info is not None and published.replicas is not None, "only the learner can send these weights"
    path = published.replicas.path_on(engine.node)
    ray_get(engine.call("init_weight_transfer_engine", {**published.init_info, "path": path}))
    ray_get(engine.call("start_weight_update"))
    ray_get(engine.call("update_weights", {}))
    ray_get(engine.call("finish_weight_update", published.version))


@dataclass(kw_only=True)
class RayEngineClient:
    """Drives weight updates on all engines; vLLM's `VLLMWeightSyncClient`. It stays in the learner's process.

    Engines on the learner's node map its slab, those on other nodes a replica. An engine that fails in an update is left out of the
    rest of it.
    """

    config: RolloutConfig
    """The engine options."""
    engines: Sequence[EngineAddress] = ()
    """The engines to update."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why engines have failed in this update, by their names."""
    next_version: int = 0
    """The version that the next update commits."""

    def __post_init__(self) -> None:
        self._init_info: dict[str, Any] | None = None
        self._replicas: SlabReplicas | None = None
        self._adapter: ray.ObjectRef | None = None
        self._connected: set[str] = set()
        self._has_begun = False

    def run_sync(
        self, version: int, engines: Sequence[EngineAddress], send: Callable[[int], Mapping[str, float]]
    ) -> SyncReport:
        """Runs one weight sync.

        Args:
            version: Version of the new weights.
            engines: The engines that run now.
            send: Sends the weights as this version through this client, as `Sender.send_weights`.
        """
        self.engines, self.failures = list(engines), {}
        if self._replicas is not None:
            self._connect_replacements()
        metrics = send(version)
        published = PublishedWeights(
            version=version,
            init_info=self._init_info if self._replicas is not None else None,
            replicas=self._replicas,
            adapter=self._adapter,
        )
        return SyncReport(metrics=metrics, failures=dict(self.failures), published=published)

    def _connect_replacements(self) -> None:
        """Connects new engines. They may map a replica that the driver made, which `refresh` does not update."""
        calls = {}
        for engine in self.engines:
            if engine.name in self._connected:
                continue
            try:
                calls[self._init_call(engine, 0)] = engine.name
            except EngineFailed as error:
                self.failures[engine.name] = str(error)
        self._wait_for(calls, "init_weight_transfer_engine")
        self._connected = {engine.name for engine in self.engines}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connects each engine to the sender of its weights."""
        self._init_info = init_info
        if "path" in init_info:
            node = ray.get_runtime_context().get_node_id()
            self._replicas = SlabReplicas(source_node=node, path=init_info["path"], nbytes=init_info["nbytes"])
        width = max(1, self.config.gpus_per_engine)
        ray_get([self._init_call(engine, number * width) for number, engine in enumerate(self.engines)])
        self._connected = {engine.name for engine in self.engines}

    def _init_call(self, engine: EngineAddress, rank: int) -> ray.ObjectRef:
        """Sends an engine the slab's path on its node, or its first rank among those that NCCL connects."""
        assert self._init_info is not None
        info = dict(self._init_info)
        if self._replicas is not None:
            info["path"] = self._replicas.path_on(engine.node)
        elif "rank_offset" in info:
            info["rank_offset"] += rank
        return engine.call("init_weight_transfer_engine", info)

    def begin(self, engines: Sequence[EngineAddress]) -> str | None:
        """Prepares every engine for weights by NCCL or CUDA IPC, before `run_sync`. Returns the reason if one has failed."""
        self.engines, self.failures = list(engines), {}
        self._on_all("start_weight_update")
        self._has_begun = True
        return next(iter(self.failures.values()), None)

    def start_weight_update(self) -> None:
        """Prepares every engine, unless `begin` has."""
        if not self._has_begun:
            self._on_all("start_weight_update")
        self._has_begun = False

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Copies the slab to other nodes, then makes every engine load."""
        if self._replicas is not None:
            lost = self._replicas.refresh()
            self.failures |= {engine.name: lost[engine.node] for engine in self.engines if engine.node in lost}
        self._on_all("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Commits the update on every engine as `next_version`."""
        version = self.next_version if weight_version is None else int(weight_version)
        self._on_all("finish_weight_update", version)

    def load_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        """Sends adapters to every engine, once to each node."""
        self._adapter = ray.put(dict(files))
        self._on_all("load_adapter", self._adapter, version)

    def close(self) -> None:
        """Ends the slab's replicas."""
        if self._replicas is not None:
            self._replicas.close()

    def _on_all(self, method: str, *args: Any) -> None:
        """Calls a method of every engine that has not failed yet."""
        engines = [engine for engine in self.engines if engine.name not in self.failures]
        self._wait_for({engine.call(method, *args): engine.name for engine in engines}, method)

    def _wait_for(self, calls: Mapping[ray.ObjectRef, str], method: str) -> None:
        """Waits for calls, and notes the engines that fail.

        Raises:
            RuntimeError: If a call fails on an engine that is still alive.
        """
        if not calls:
            return
        done, silent = ray.wait(list(calls), num_returns=len(calls), timeout=self.config.engine_timeout)
        for call in silent:
            self.failures[calls[call]] = (
                f"{method} took longer than {self.config.engine_timeout:g} s (rollout.engine_timeout)"
            )
        for call in done:
            try:
                ray_get(call)
            except EngineFailed as error:
                self.failures[calls[call]] = str(error)
