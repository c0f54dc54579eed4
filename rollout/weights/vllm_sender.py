"""The sender of vLLM's own backends, NCCL and CUDA IPC. It imports vLLM, so `make_sender` imports it late."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import ray
import torch
from vllm.distributed.weight_transfer.base import ParamMeta
from vllm.distributed.weight_transfer.base import WeightSource as VllmWeightSourceBase
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES
from vllm.utils.network_utils import get_open_port

from rollout.config import Backend
from rollout.weights.source import EngineClient, WeightSource


class VllmSender:
    """Sends weights by vLLM's own `nccl` (separate GPUs) and `ipc` (the same GPUs for both) backends.

    With NCCL the learner's rank 0 sends to all GPUs. With CUDA IPC every rank has a sender, which copies the gathered weights into
    memory of its GPU. Rank 0 sends all addresses to all engines, by the GPUs' UUIDs, and an engine's worker reads those of its GPU.

    Args:
        backend: `"nccl"` or `"ipc"`.
        source: The weights.
        client: The engines; used on rank 0 only.
        num_workers: GPU workers of all engines together.
        rank: The learner's rank.
    """

    def __init__(
        self, backend: Backend, source: WeightSource, client: EngineClient, *, num_workers: int, rank: int = 0
    ) -> None:
        self._client = client
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in source.on_the_wire()]
        self.nbytes = sum(sizes)
        info = (
            # Ray's address: vLLM's own guess is 0.0.0.0 on a machine without a default route.
            NCCLTrainerInitInfo(
                rank=rank,
                master_address=ray.util.get_node_ip_address(),
                master_port=get_open_port(),
                world_size=1 + num_workers,
            )
            if backend == "nccl"
            # The buffer must hold a whole parameter. The embedding of an 8B policy alone exceeds vLLM's default of 1 GiB.
            else IPCTrainerInitInfo(
                rank=rank, packed=True, packed_buffer_size_bytes=max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, *sizes)
            )
        )
        self.engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=VllmWeightSource(source))

    def send_weights(self, version: int) -> dict[str, float]:
        """Broadcasts the parameters through vLLM's transport.

        Returns:
            `sync/bytes` and `sync/seconds`.
        """
        start = time.perf_counter()
        self._client.next_version = version
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # vLLM sends on streams of its own, which nothing else orders after the optimizer's update
        self.engine.send_weights()
        return {"sync/bytes": float(self.nbytes), "sync/seconds": time.perf_counter() - start}


class VllmWeightSource(VllmWeightSourceBase):
    """A `WeightSource` as vLLM's senders take it: contiguous tensors in the engines' dtype, in the order of `metadata`.

    They are on the GPU if there is one. A learner that keeps its weights in host memory gathers them there, where neither NCCL nor
    CUDA IPC can read them.
    """

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def metadata(self) -> list[ParamMeta]:
        """Returns name, dtype on the wire and shape of every parameter."""
        return [ParamMeta(name, dtype, tuple(shape)) for name, dtype, shape in self._source.on_the_wire()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for meta, (name, tensor) in zip(self.metadata(), self._source.tensors(), strict=True):
            yield name, tensor.detach().to(self._device, meta.dtype).contiguous()
