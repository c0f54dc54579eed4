"""Weight updates on all engines, driven from the learner's process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from rollout.config import RolloutConfig
from rollout.ray_calls import EngineAddress, ray_get
from rollout.types import CannotReplace, EngineFailed
from rollout.weights.slab_replicas import Mirrors


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
    engines: Sequence[EngineAddress] = ()
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
        ray_get(
            [
                engine.actor.init_weight_transfer_engine.remote(self._info_for(engine, i * width))
                for i, engine in enumerate(self.engines)
            ]
        )

    def _info_for(self, engine: EngineAddress, rank: int) -> dict[str, Any]:
        """What an engine is told: the slab's path on its node, or its first rank among those that NCCL connects."""
        assert self._init_info is not None
        info = dict(self._init_info)
        if self._mirrors is not None:
            info["path"] = self._mirrors.path_on(engine.node)
        elif "rank_offset" in info:
            info["rank_offset"] += rank
        return info

    def introduce(self, engine: EngineAddress) -> None:
        """Gives a replacement what the others have had: the way to the weights, and those that the last update committed.

        Weights that NCCL or CUDA IPC brings cannot come from here.

        Raises:
            EngineFailed: If it dies.
        """
        if self._adapter is not None:
            ray_get(engine.actor.load_adapter.remote(self._adapter, self.version))
            return
        if self._init_info is None:
            return
        assert self._mirrors is not None, "by NCCL and CUDA IPC only the learner can send"
        ray_get(engine.actor.init_weight_transfer_engine.remote(self._info_for(engine, 0)))
        if self.version is not None:
            ray_get(engine.actor.start_weight_update.remote())
            ray_get(engine.actor.update_weights.remote({}))
            ray_get(engine.actor.finish_weight_update.remote(self.version))

    def start_weight_update(self) -> None:
        """Prepares every engine.

        Raises:
            CannotReplace: If one is lost and the others are to get their weights by NCCL or CUDA IPC, which would wait for it.
        """
        self._on_all("start_weight_update")
        if self.lost and self._mirrors is None:
            raise CannotReplace(f"An engine was lost before a weight sync: {next(iter(self.lost.values()))}")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Brings the slab to other nodes, then has every engine load."""
        if self._mirrors is not None:
            lost = self._mirrors.refresh()
            self.lost |= {engine.name: lost[engine.node] for engine in self.engines if engine.node in lost}
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
                ray_get(call)
            except EngineFailed as error:
                self.lost[calls[call]] = str(error)
