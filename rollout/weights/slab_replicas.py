"""Replicas of the learner's slab on other nodes: one on each, which all engines of that node map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.ray_calls import ray_get
from rollout.types import EngineFailed
from rollout.weights.slab import WeightSlab, map_slab

CHUNK_BYTES = 256 << 20
"""Bytes of a slab that are sent to another node at once. Ray's object store must have room for them."""


class _SlabHolder:
    """Holds a node's replica of the slab. On the learner's node, reads the slab itself."""

    def __init__(self, nbytes: int, path: str | None = None) -> None:
        self._slab: WeightSlab | None = None
        if path is None:
            self._slab = WeightSlab(nbytes)
            self._bytes = self._slab.buffer.numpy()
        else:
            self._bytes = map_slab(path, nbytes).numpy()

    def path(self) -> str:
        assert self._slab is not None, "the learner's slab has its own path"
        return self._slab.path

    def read(self, offset: int) -> np.ndarray:
        return self._bytes[offset : offset + CHUNK_BYTES]

    def write(self, chunk: np.ndarray, offset: int) -> None:
        self._bytes[offset : offset + len(chunk)] = chunk


@dataclass(slots=True, kw_only=True)
class SlabReplicas:
    """The slab's path on each node. May be sent to another process, which can then add replicas of its own."""

    source_node: str
    """The learner's Ray node."""
    path: str
    """The slab's path there."""
    nbytes: int
    """Size of the slab."""
    _holders: dict[str, ActorHandle] = field(default_factory=dict)
    _lost: dict[str, str] = field(default_factory=dict)

    def path_on(self, node: str) -> str:
        """Returns the path by which processes of a node map the slab's content. Makes a replica if there is none or it is lost.

        Raises:
            EngineFailed: If the replica is lost while it is made.
        """
        if node == self.source_node:
            return self.path
        if node in self._holders:
            try:
                return ray_get(self._holders[node].path.remote())
            except EngineFailed as error:
                self._forget(node, error)
        if self.source_node not in self._holders:
            self._holders[self.source_node] = _holder(self.source_node, self.nbytes, self.path)
        self._holders[node] = _holder(node, self.nbytes, None)
        path = ray_get(self._holders[node].path.remote())
        self._copy([node])
        if node not in self._holders:
            raise EngineFailed(self._lost[node])
        return path

    def refresh(self) -> dict[str, str]:
        """Copies the slab to all nodes with a replica.

        Returns:
            Node -> why a replica of it is lost since the last call. An engine that still maps it must not load from it any more.
        """
        self._copy([node for node in self._holders if node != self.source_node])
        lost, self._lost = self._lost, {}
        return lost

    def close(self) -> None:
        """Ends the replicas."""
        for holder in self._holders.values():
            ray.kill(holder)
        self._holders.clear()

    def _copy(self, nodes: Sequence[str]) -> None:
        """Copies the slab to the replicas of nodes, and forgets those that are lost."""
        for offset in range(0, self.nbytes, CHUNK_BYTES) if nodes else ():
            chunk = self._holders[self.source_node].read.remote(offset)
            calls = {node: self._holders[node].write.remote(chunk, offset) for node in nodes if node in self._holders}
            for node, call in calls.items():
                try:
                    ray_get(call)
                except EngineFailed as error:
                    self._forget(node, error)

    def _forget(self, node: str, error: EngineFailed) -> None:
        del self._holders[node]
        self._lost[node] = f"its node's copy of the weights is lost: {error}"


def _holder(node: str, nbytes: int, path: str | None) -> ActorHandle:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_SlabHolder).options(num_cpus=0, scheduling_strategy=there).remote(nbytes, path)
