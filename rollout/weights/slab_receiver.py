"""The receiver of the backend `shared_memory`. It runs inside vLLM's worker, which imports this file by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import BoundArguments
from typing import Any
from unittest import mock

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    layerwise,
)
from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo

from rollout.weights.slab import SlabParameter, map_slab, slab_tensor


@dataclass
class SlabInfo(WeightTransferInitInfo):
    """Path and layout of the node's slab; sent once."""

    path: str
    nbytes: int
    layout: list[dict[str, Any]]


@dataclass
class SlabUpdate(WeightTransferUpdateInfo):
    """The message that the slab holds new weights. It has no fields."""


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SlabInfo, SlabUpdate]):
    """Loads weights from the mapped slab. The only copy is vLLM's into its parameters."""

    init_info_cls = SlabInfo
    update_info_cls = SlabUpdate

    def init_transfer_engine(self, init_info: SlabInfo) -> None:
        """Maps the slab."""
        self._buffer = map_slab(init_info.path, init_info.nbytes)
        self._layout = [SlabParameter(**parameter) for parameter in init_info.layout]
        self._loads: list[LayerLoads] = []

    def start_weight_update(self) -> None:
        """Makes vLLM accept weights in checkpoint layout again."""
        if self.device.type == "cpu":
            _forget_moe_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SlabUpdate) -> None:
        """Loads every parameter from its view into the slab.

        The first time vLLM finds the layer and the part of each parameter, which takes longer than the copies. Later updates repeat
        what it found.
        """
        if self._loads:
            for layer_loads in self._loads:
                layer_loads.repeat()
        else:
            loads = load_and_record(self.model, self.tensors())
            self._loads = loads if all(each.repeats_from(self._buffer) for each in loads) else []

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Returns name and view of each parameter in the slab."""
        for parameter in self._layout:
            yield parameter.name, slab_tensor(self._buffer, parameter)

    def finish_weight_update(self) -> None:
        """Repacks the weights for the kernels."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _repack_output_embeddings(self.model)

    def shutdown(self) -> None:
        """Unmaps the slab."""
        self._buffer, self._loads = torch.empty(0, dtype=torch.uint8), []


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoads:
    """The calls of weight loaders that fill one layer of vLLM's model."""

    layer: torch.nn.Module
    calls: list[tuple[str, BoundArguments]]
    """Name of vLLM's parameter, and the loader's arguments."""

    def repeats_from(self, buffer: torch.Tensor) -> bool:
        """True if the calls read a slab's bytes and no copies, and vLLM does not postpone them as it does for attention."""
        read = [
            value.untyped_storage().data_ptr()
            for _, bound in self.calls
            for name, value in bound.arguments.items()
            if isinstance(value, torch.Tensor) and name != "param"
        ]
        return set(read) == {buffer.untyped_storage().data_ptr()} and not is_deferred_attention_layer(self.layer)

    def repeat(self) -> None:
        """Fills the layer again, and repacks it for its kernel."""
        info = layerwise.get_layerwise_info(self.layer)
        info.loaded_weights = list(self.calls)
        layerwise._layerwise_process(self.layer, info)


def load_and_record(model: torch.nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[LayerLoads]:
    """Loads tensors into vLLM's model. Returns the calls by which vLLM does it."""
    loads: list[LayerLoads] = []
    process = layerwise._layerwise_process

    def record(layer: torch.nn.Module, info: LayerReloadingInfo) -> None:
        loads.append(LayerLoads(layer=layer, calls=list(info.loaded_weights)))
        process(layer, info)

    with mock.patch.object(layerwise, "_layerwise_process", record):
        model.load_weights(tensors)
    # Layers with padding never seem complete to vLLM. It processes them at the end of the update.
    left = [(layer, layerwise.get_layerwise_info(layer).loaded_weights) for layer in model.modules()]
    return loads + [LayerLoads(layer=layer, calls=list(calls)) for layer, calls in left if calls]


def _forget_moe_kernels(model: torch.nn.Module) -> None:
    """Removes the kernels of experts. On CPUs vLLM 0.32 repacks experts only if a layer has no kernel, without an error."""
    for module in model.modules():
        quant_method: Any = getattr(module, "quant_method", None)
        if hasattr(quant_method, "moe_kernel"):
            quant_method.moe_kernel = None


def _repack_output_embeddings(model: torch.nn.Module) -> None:
    """Packs the output embedding again. On CPUs vLLM 0.32 multiplies by a packed copy of it.

    A tied embedding shares its weight with the input embedding and loads nothing itself, so it would silently keep the old copy.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
