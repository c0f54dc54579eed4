"""The receiver of the backend `shared_memory`. It runs inside vLLM's worker, which imports this file by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

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

    def start_weight_update(self) -> None:
        """Makes vLLM accept weights in checkpoint layout again."""
        if self.device.type == "cpu":
            _forget_moe_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SlabUpdate) -> None:
        """Loads every parameter from its view into the slab."""
        self.model.load_weights((parameter.name, slab_tensor(self._buffer, parameter)) for parameter in self._layout)

    def finish_weight_update(self) -> None:
        """Repacks the weights for the kernels."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _repack_output_embeddings(self.model)

    def shutdown(self) -> None:
        """Unmaps the slab."""
        self._buffer = torch.empty(0, dtype=torch.uint8)


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
