"""A `WeightSource` in the form that vLLM's own senders take. Imported only where one of them runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from vllm.distributed.weight_transfer.base import ParamMeta
from vllm.distributed.weight_transfer.base import WeightSource as VllmWeightSourceBase

from rollout.weights.senders import WeightSource


class VllmWeightSource(VllmWeightSourceBase):
    """Yields contiguous tensors in the engines' dtype, in the order of `metadata`, on the GPU if there is one: a learner that
    keeps its weights in host memory gathers them there, whence neither NCCL nor CUDA IPC can take them.
    """

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype on the wire and shape of every parameter."""
        return [ParamMeta(name, dtype, tuple(shape)) for name, dtype, shape in self._source.on_the_wire()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for meta, (name, tensor) in zip(self.metadata(), self._source.tensors(), strict=True):
            yield name, tensor.detach().to(self._device, meta.dtype).contiguous()
