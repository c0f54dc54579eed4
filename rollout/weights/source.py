"""Protocols of a weight sync: a source of weights, a client of the engines, and a sender between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from rollout.weight_sums import tensor_sum


class EngineClient(Protocol):
    """Controls the weight updates of all engines; vLLM's `VLLMWeightSyncClient` with a version to commit."""

    next_version: int

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: dict[str, Any]) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...
    def load_adapter(self, files: Mapping[str, bytes], version: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """The learner's parameters under the names and layouts of the published checkpoint."""

    metadata: Callable[[], Iterable[tuple[str, torch.dtype, Sequence[int]]]]
    """Returns name, dtype and shape of each parameter, and reads no data."""
    tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]
    """Returns name and tensor of each parameter, in the same order. Called once per sync."""
    dtype: torch.dtype
    """The engines' dtype. Floating-point parameters are cast to it when they are sent."""

    def on_the_wire(self) -> list[tuple[str, torch.dtype, Sequence[int]]]:
        """Returns `metadata` with the dtypes that engines receive."""
        return [
            (name, self.dtype if dtype.is_floating_point else dtype, shape) for name, dtype, shape in self.metadata()
        ]


def summed(source: WeightSource) -> tuple[WeightSource, dict[str, int]]:
    """Returns a source of the same weights, and the sums of those that it has yielded last, by name."""
    sums: dict[str, int] = {}

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        sums.clear()
        for (name, dtype, _), (source_name, tensor) in zip(source.on_the_wire(), source.tensors(), strict=True):
            assert name == source_name, f"parameters changed their order: {name} became {source_name}"
            sent = tensor.to(dtype)
            sums[name] = tensor_sum(sent)
            yield name, sent

    return replace(source, tensors=tensors), sums


class Sender(Protocol):
    """Sends all weights, or adapters, to all engines, and commits `version` there. Returns `sync/` metrics."""

    def send_weights(self, version: int) -> dict[str, float]: ...
