"""Weight updates on engines, driven from the learner's rank 0, and the loading of published weights by a replacement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from rollout.config import RolloutConfig
from rollout.ray_calls import EngineAddress, ray_get
from rollout.types import EngineFailed
from rollout.weight_sums import file_sums
from rollout.weights.slab_replicas import SlabReplicas

BROADCAST_CALLS = ("init_weight_transfer_engine", "start_weight_update", "update_weights")
"""Calls of engines in one group of NCCL that the loss of one of them makes useless for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """The weights of the last sync, as a replacement loads them. NCCL and CUDA IPC publish the version alone."""

    version: int
    """Version of the weights."""
    init_info: Mapping[str, Any] | None = None
    """The slab's layout, by `shared_memory`."""
    replicas: SlabReplicas | None = None
    """The slab on each node, by `shared_memory`."""
    adapter: ray.ObjectRef | None = None
    """The files of LoRA's adapters, if adapters are sent instead of weights."""
    sums: Mapping[str, int] = field(default_factory=dict)
    """The sums of weights or adapters, with `rollout.verify_weights`."""

    @property
    def has_content(self) -> bool:
        """True if a replacement can load them without the learner."""
        return self.replicas is not None or self.adapter is not None

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


def load_published(engine: EngineAddress, published: PublishedWeights) -> None:
    """Loads the weights of the last sync into a replacement.

    Raises:
        EngineFailed: If the engine dies.
    """
    if published.adapter is not None:
        ray_get(engine.call("load_adapter", published.adapter, published.version, published.sums))
        return
    assert published.init_info is not None and published.replicas is not None, "only the learner can send these weights"
    path = published.replicas.path_on(engine.node)
    ray_get(engine.call("init_weight_transfer_engine", {**published.init_info, "path": path}))
    ray_get(engine.call("start_weight_update"))
    ray_get(engine.call("update_weights", {}))
    if published.sums:
        ray_get(engine.call("verify_weights", published.sums))
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
    give_up: Callable[[], None] | None = None
    """Set if one broadcast brings the weights to all engines: ends it on the learner's side when an engine is lost."""
    sums: Mapping[str, int] = field(default_factory=dict)
    """The sums of what was sent last; empty without `rollout.verify_weights`."""

    def __post_init__(self) -> None:
        self._init_info: dict[str, Any] | None = None
        self._replicas: SlabReplicas | None = None
        self._adapter: ray.ObjectRef | None = None
        self._connected: set[str] = set()

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
        if self.give_up is None and self._init_info is not None:
            self._connect([engine for engine in engines if engine.name not in self._connected])
        metrics = send(version)
        published = PublishedWeights(
            version=version,
            init_info=self._init_info if self._replicas is not None else None,
            replicas=self._replicas,
            adapter=self._adapter,
            sums=dict(self.sums),
        )
        return SyncReport(metrics=metrics, failures=dict(self.failures), published=published)

    @property
    def alive(self) -> list[EngineAddress]:
        """The engines that have not failed in this update."""
        return [engine for engine in self.engines if engine.name not in self.failures]

    def find_lost(self) -> None:
        """Notes the engines that have died since the last update."""
        self._on_all("ping")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connects every engine to the sender of its weights."""
        self._init_info = init_info
        if "path" in init_info:
            node = ray.get_runtime_context().get_node_id()
            self._replicas = SlabReplicas(source_node=node, path=init_info["path"], nbytes=init_info["nbytes"])
        self._connect(self.alive)

    def _connect(self, engines: Sequence[EngineAddress]) -> None:
        """Connects engines. They may map a replica that the driver made, which `refresh` does not update."""
        calls = {}
        for number, engine in enumerate(engines):
            try:
                call = engine.call("init_weight_transfer_engine", self._info_for(engine, number))
            except EngineFailed as error:
                self.failures[engine.name] = str(error)
            else:
                calls[call] = engine.name
        self._wait_for(calls, "init_weight_transfer_engine")
        self._connected |= {engine.name for engine in engines}

    def _info_for(self, engine: EngineAddress, number: int) -> dict[str, Any]:
        """Returns what connects an engine: the slab's path on its node, or the rank in NCCL's group of its first worker."""
        assert self._init_info is not None
        if self._replicas is not None:
            return {**self._init_info, "path": self._replicas.path_on(engine.node)}
        if "rank_offset" not in self._init_info:
            return self._init_info
        rank = self._init_info["rank_offset"] + number * self.config.workers_per_engine
        return {**self._init_info, "rank_offset": rank}

    def disconnect(self) -> None:
        """Makes every engine leave the group of NCCL that it is in."""
        self._on_all("shutdown_weight_transfer_engine")

    def start_weight_update(self) -> None:
        """Prepares every engine."""
        self._on_all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Copies the slab to other nodes, then makes every engine load."""
        if self._replicas is not None:
            lost = self._replicas.refresh()
            self.failures |= {engine.name: lost[engine.node] for engine in self.engines if engine.node in lost}
        self._on_all("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Commits the update on every engine as `next_version`. Engines whose sums differ fail before."""
        if self.sums:
            self._on_all("verify_weights", dict(self.sums))
        version = self.next_version if weight_version is None else int(weight_version)
        self._on_all("finish_weight_update", version)

    def load_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        """Sends adapters to every engine, once to each node."""
        self._adapter = ray.put(dict(files))
        if self.config.verify_weights:
            self.sums = file_sums(files)
        self._on_all("load_adapter", self._adapter, version, self.sums)

    def close(self) -> None:
        """Ends the slab's replicas."""
        if self._replicas is not None:
            self._replicas.close()

    def _on_all(self, method: str, *args: Any) -> None:
        """Calls a method of every engine that has not failed yet."""
        self._wait_for({engine.call(method, *args): engine.name for engine in self.alive}, method)

    def _wait_for(self, calls: Mapping[ray.ObjectRef, str], method: str) -> None:
        """Waits for calls, and notes the engines that fail.

        Raises:
            RuntimeError: If a call fails on an engine that is still alive, outside a broadcast.
        """
        deadline = time.monotonic() + self.config.engine_timeout
        waiting = list(calls)
        while waiting:
            done, _ = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            for call in done or waiting:
                reason = self._failure(call, method) if done else self._late(method)
                if reason is not None:
                    self._lose(calls[call], method, reason)
            waiting = [call for call in waiting if call not in done and calls[call] not in self.failures]

    def _failure(self, call: ray.ObjectRef, method: str) -> str | None:
        """Returns why an engine has failed in a call; None if it has not."""
        try:
            ray_get(call)
        except EngineFailed as error:
            return str(error)
        except RuntimeError as error:
            if self.give_up is None or method not in BROADCAST_CALLS:
                raise
            return str(error)  # follows from another engine's loss, which may show later
        return None

    def _late(self, method: str) -> str:
        return f"{method} took longer than {self.config.engine_timeout:g} s (rollout.engine_timeout)"

    def _lose(self, name: str, method: str, reason: str) -> None:
        """Notes that an engine has failed. In a broadcast all others fail with it: they would wait for the lost one forever."""
        self.failures[name] = reason
        if self.give_up is not None and method in BROADCAST_CALLS:
            for engine in self.alive:
                self.failures[engine.name] = f"another engine was lost in the same broadcast: {reason}"
            self.give_up()
