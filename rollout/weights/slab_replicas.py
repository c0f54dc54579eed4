"""The learner's slab on other nodes: one copy on each, which all engines of that node map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.ray_calls import ray_get
from rollout.types import EngineFailed
from rollout.weights.slab import WeightSlab, map_slab

PIECE = 256 << 20
"""Bytes of a slab that travel to another node at once: what Ray's object store must have room for."""


class _SlabHolder:
    """Holds a node's copy of the slab; on the learner's node, reads the slab itself."""

    def __init__(self, nbytes: int, path: str | None = None) -> None:
        self._slab: WeightSlab | None = None
        if path is None:
            self._slab = WeightSlab(nbytes)
            self._bytes = self._slab.buffer.numpy()
        else:
            self._bytes = map_slab(path, nbytes).numpy()

    def path(self) -> str:
        assert self._slab is not None, "the learner's own slab has a path of its own"
        return self._slab.path

    def read(self, offset: int) -> np.ndarray:
        return self._bytes[offset : offset + PIECE]

    def write(self, piece: np.ndarray, offset: int) -> None:
        self._bytes[offset : offset + len(piece)] = piece


@dataclass(slots=True, kw_only=True)
class Mirrors:
    """Where each node finds the slab. May travel between processes; whoever holds it last keeps it.

    Attributes:
        home: The learner's Ray node.
        path: The slab's path there.
        nbytes: Its size.
    """

    home: str
    path: str
    nbytes: int
    _holders: dict[str, ActorHandle] = field(default_factory=dict)
    _paths: dict[str, str] = field(default_factory=dict)

    def path_on(self, node: str) -> str:
        """The path by which processes of a node map what the slab holds now; makes a copy there at the first call."""
        if node == self.home:
            return self.path
        if node not in self._holders:
            if not self._holders:
                self._holders[self.home] = _holder(self.home, self.nbytes, self.path)
            self._holders[node] = _holder(node, self.nbytes, None)
            self._paths[node] = ray_get(self._holders[node].path.remote())
            if lost := self._copy({node: self._holders[node]}):
                raise EngineFailed(lost[node])
        return self._paths[node]

    def refresh(self) -> dict[str, str]:
        """Brings what the slab holds now to all nodes that have a copy.

        Returns:
            Why nodes have lost theirs, by the node; what still maps such a copy must not load from it any more.
        """
        return self._copy({node: holder for node, holder in self._holders.items() if node != self.home})

    def close(self) -> None:
        """Ends the copies."""
        for holder in self._holders.values():
            ray.kill(holder)
        self._holders.clear()

    def _copy(self, targets: Mapping[str, ActorHandle]) -> dict[str, str]:
        lost: dict[str, str] = {}
        for offset in range(0, self.nbytes, PIECE) if targets else ():
            piece = self._holders[self.home].read.remote(offset)
            written = {node: holder.write.remote(piece, offset) for node, holder in targets.items() if node not in lost}
            for node, call in written.items():
                try:
                    ray_get(call)
                except EngineFailed as error:
                    lost[node] = f"its node's copy of the weights is lost: {error}"
        for node in lost:
            del self._holders[node], self._paths[node]
        return lost


def _holder(node: str, nbytes: int, path: str | None) -> ActorHandle:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_SlabHolder).options(num_cpus=0, scheduling_strategy=there).remote(nbytes, path)
