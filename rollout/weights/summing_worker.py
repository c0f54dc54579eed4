"""A worker extension that sums the weights that arrive. vLLM's worker imports it by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from rollout.weight_sums import tensor_sum

Load = Callable[[Iterable[tuple[str, Tensor]]], Any]


class SummingWorker:
    """Methods that vLLM adds to its worker (`worker_extension_cls`), for `collective_rpc`."""

    get_model: Callable[[], nn.Module]
    weight_transfer_engine: Any

    def sum_arriving_weights(self) -> None:
        """Sums the weights that vLLM's transports load from now on, and forgets earlier sums."""
        model: Any = self.get_model()
        if isinstance(model.load_weights, SummingLoad):
            model.load_weights.sums.clear()
        else:
            model.load_weights = SummingLoad(model.load_weights)

    def arrived_sums(self) -> dict[str, int]:
        """Returns the sums of the weights that have arrived, by name. Those in a slab are still there."""
        if hasattr(self.weight_transfer_engine, "tensors"):
            return {name: tensor_sum(tensor) for name, tensor in self.weight_transfer_engine.tensors()}
        model: Any = self.get_model()
        return dict(model.load_weights.sums)


class SummingLoad:
    """A model's `load_weights` that sums what it loads.

    Args:
        load: The model's own.
    """

    def __init__(self, load: Load) -> None:
        self._load, self.sums = load, dict[str, int]()

    def __call__(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        return self._load(self._summed(weights))

    def _summed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self.sums[name] = tensor_sum(tensor)
            yield name, tensor
