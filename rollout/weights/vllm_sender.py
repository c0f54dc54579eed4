"""The sending end of vLLM's own backends, NCCL and CUDA IPC. Imports vLLM, so `make_sender` imports it late."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from vllm.distributed.weight_transfer.base import ParamMeta
from vllm.distributed.weight_transfer.base import WeightSource as VllmWeightSourceBase
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES
from vllm.utils.network_utils import get_ip, get_open_port

from rollout.config import Backend
from rollout.weights.source import EngineClient, WeightSource


class VllmSender:
    """The sending end of vLLM's own `nccl` (separate GPUs) and `ipc` (the same GPUs for both) backends.

    By NCCL the learner's rank 0 sends to all GPUs. By CUDA IPC every rank has a sender: each lays what it gathers into memory of
    its own GPU, rank 0 tells all engines where under the GPUs' UUIDs, and an engine's worker takes what is on its own.

    Args:
        backend: `"nccl"` or `"ipc"`.
        source: What to send.
        client: The engines; of use on rank 0 only.
        num_workers: GPU workers of all engines together.
        rank: The learner's.
    """

    def __init__(
        self, backend: Backend, source: WeightSource, client: EngineClient, *, num_workers: int, rank: int = 0
    ) -> None:
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in source.on_the_wire()]
        self.nbytes = sum(sizes)
        info = (
            NCCLTrainerInitInfo(
                rank=rank, master_address=get_ip(), master_port=get_open_port(), world_size=1 + num_workers
            )
            if backend == "nccl"
            # A parameter must fit in whole: the embedding of an 8B policy alone has more than vLLM's default of 1 GiB.
            else IPCTrainerInitInfo(
                rank=rank, packed=True, packed_buffer_size_bytes=max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, *sizes)
            )
        )
        self.engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=VllmWeightSource(source))

    @property
    def client(self) -> EngineClient:
        """vLLM's trainer has it."""
        return self.engine.client

    @client.setter
    def client(self, client: EngineClient) -> None:
        self.engine.client = client

    def send_weights(self, version: int) -> dict[str, float]:
        """Broadcasts the parameters through vLLM's transport.

        Returns:
            `sync/bytes` and `sync/seconds`.
        """
        start = time.perf_counter()
        self.client.next_version = version
        self.engine.send_weights()
        return {"sync/bytes": float(self.nbytes), "sync/seconds": time.perf_counter() - start}


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
