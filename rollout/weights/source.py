"""Protocols of a weight sync: a source of weights, a client of the engines, and a sender between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class EngineClient(Protocol):
    """The control plane of all engines as one; vLLM's `VLLMWeightSyncClient` with a version to commit."""

    next_version: int

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: dict[str, Any]) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...
    def load_adapter(self, files: Mapping[str, bytes], version: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """The learner's parameters under the names and layouts of the published checkpoint.

    Attributes:
        metadata: Name, dtype and shape of each; touches no data.
        tensors: Name and tensor of each, in the same order; called once per sync.
        dtype: The engines' dtype: floating-point parameters are cast to it on their way.
    """

    metadata: Callable[[], Iterable[tuple[str, torch.dtype, Sequence[int]]]]
    tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]
    dtype: torch.dtype

    def on_the_wire(self) -> list[tuple[str, torch.dtype, Sequence[int]]]:
        """`metadata` with the dtypes that engines receive."""
        return [
            (name, self.dtype if dtype.is_floating_point else dtype, shape) for name, dtype, shape in self.metadata()
        ]


class Sender(Protocol):
    """Pushes all weights, or adapters, to all engines, then commits `version` there; returns `sync/` metrics.

    Attributes:
        client: The engines; may be changed for others between two updates.
    """

    client: EngineClient

    def send_weights(self, version: int) -> dict[str, float]: ...
