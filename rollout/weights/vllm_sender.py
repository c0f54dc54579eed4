"""The senders of vLLM's own backends, NCCL and CUDA IPC. They import vLLM, so `make_sender` imports them late."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import ParamMeta
from vllm.distributed.weight_transfer.base import WeightSource as VllmWeightSourceBase
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES
from vllm.utils.network_utils import get_open_port

from rollout.weights.source import EngineClient, WeightSource
from rollout.weights.update import RayEngineClient

BUFFER_BYTES = DEFAULT_PACKED_BUFFER_SIZE_BYTES
"""Size of the pieces in which weights are sent."""


class IpcSender:
    """Sends weights by vLLM's `ipc`, to engines on the learner's GPUs.

    Every rank of the learner has one, which copies the gathered weights into memory of its GPU. Rank 0 sends all addresses to all
    engines, by the GPUs' UUIDs, and an engine's worker reads those of its GPU.

    Args:
        source: The weights.
        client: The engines; used on rank 0 only.
        rank: The learner's rank.
    """

    def __init__(self, source: WeightSource, client: EngineClient, *, rank: int) -> None:
        self._client = client
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in source.on_the_wire()]
        self._nbytes = sum(sizes)
        # The buffer must hold a whole parameter. The embedding of an 8B policy alone exceeds vLLM's default of 1 GiB.
        info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=max(BUFFER_BYTES, *sizes))
        self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=VllmWeightSource(source))

    def send_weights(self, version: int) -> dict[str, float]:
        """Sends the parameters through vLLM's transport.

        Returns:
            `sync/bytes` and `sync/seconds`.
        """
        start = time.perf_counter()
        self._client.next_version = version
        _wait_for_optimizer()
        self._trainer.send_weights()
        return {"sync/bytes": float(self._nbytes), "sync/seconds": time.perf_counter() - start}


class NcclSender:
    """Sends weights by vLLM's `nccl`, from the learner's rank 0 to all GPUs of the engines.

    Learner and engines form one group, and a new one if the engines are not those of the last sync. NCCL would wait for a lost
    engine forever. So the learner gives the group up, and the engines that are left in it are lost as well.

    Args:
        source: The weights.
        client: The engines.
    """

    def __init__(self, source: WeightSource, client: RayEngineClient) -> None:
        self._client, self._source = client, VllmWeightSource(source)
        self._nbytes = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in source.on_the_wire())
        self._members: list[str] = []
        self._trainer: Any = None
        client.give_up = self._give_up
        self._form_group()

    def send_weights(self, version: int) -> dict[str, float]:
        """Broadcasts the parameters through vLLM's transport; see `IpcSender.send_weights`."""
        start = time.perf_counter()
        self._client.next_version = version
        _wait_for_optimizer()
        self._client.find_lost()
        if [engine.name for engine in self._client.alive] != self._members:
            self._form_group()
        if self._trainer is None:  # no engine is left, but the learner's other ranks gather all the same
            for _ in self._source:
                pass
        else:
            self._trainer.send_weights()
        return {"sync/bytes": float(self._nbytes), "sync/seconds": time.perf_counter() - start}

    def _form_group(self) -> None:
        """Ends the old group on every side, and connects the learner with the engines that are alive."""
        self._give_up()
        self._client.disconnect()
        engines = self._client.alive
        if not engines:
            return
        info = NCCLTrainerInitInfo(
            rank=0,
            # Ray's address: vLLM's own guess is 0.0.0.0 on a machine without a default route.
            master_address=ray.util.get_node_ip_address(),
            master_port=get_open_port(),
            world_size=1 + len(engines) * self._client.config.workers_per_engine,
            packed_buffer_size_bytes=BUFFER_BYTES,
        )
        forming: Future[Any] = Future()

        def form() -> None:
            try:
                forming.set_result(
                    WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=self._source)
                )
            except BaseException as error:
                forming.set_exception(error)

        # In a thread of its own, which stays behind if an engine is lost: NCCL waits for all, without a limit.
        Thread(target=form, name="forming a group", daemon=True).start()
        while self._client.alive == engines and not wait([forming], timeout=0.2).done:
            pass
        if self._client.alive == engines:
            self._trainer, self._members = forming.result(), [engine.name for engine in engines]
        else:
            forming.add_done_callback(_end_late_group)

    def _give_up(self) -> None:
        """Ends the group on the learner's side, also in the middle of a broadcast in another thread."""
        trainer, self._trainer, self._members = self._trainer, None, []
        if trainer is None:
            return
        group = trainer.model_update_group
        # The rest of a broadcast goes nowhere, while its source is still read in step with the learner's other ranks.
        group.broadcast = lambda tensor, src, stream=None: None
        group.destroy()


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


def _end_late_group(forming: Future[Any]) -> None:
    """Ends a group whose forming nobody waits for any more."""
    if forming.exception() is None:
        forming.result().shutdown()


def _wait_for_optimizer() -> None:
    """Waits until the GPU has updated the weights: vLLM sends on streams of its own, which nothing else orders after that."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
