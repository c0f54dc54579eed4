"""New weights from the learner into the engines: one slab of shared memory per node, or vLLM's NCCL and CUDA IPC.

The learner copies its parameters once into a slab, every engine on the node maps the slab and loads from it. A slab is an
anonymous memory file: nothing appears in `/dev/shm`, and the kernel frees it with its last process, however that dies.
Engines on another node map a mirror of the slab there (`rollout.weights.slab_replicas`). No weight is ever pickled.
"""

from __future__ import annotations

import math
import mmap
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from rollout.config import Backend, RolloutConfig
from rollout.engine.vllm_processes import end_with_parent, sleep_while_waiting

ALIGNMENT = 64
"""Bytes: every parameter starts on a cache line."""


def register() -> None:
    """vLLM's plugin hook, called in each of its processes: makes the backend `shared_memory` known there."""
    end_with_parent()
    sleep_while_waiting()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "shared_memory" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "shared_memory", "rollout.weights.slab_receiver", "SharedMemoryWeightTransferEngine"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabParameter:
    """Where one parameter lies in a slab: `offset` in bytes, `dtype` as in `torch.<dtype>`, `shape` as published."""

    name: str
    dtype: str
    shape: list[int]
    offset: int


def plan_slab(
    parameters: Iterable[tuple[str, torch.dtype, Sequence[int]]],
) -> tuple[list[SlabParameter], int]:
    """Lays parameters out one behind the other.

    Args:
        parameters: Name, dtype on the wire, shape.

    Returns:
        The layout, and the slab's size in bytes.
    """
    layout, offset = [], 0
    for name, dtype, shape in parameters:
        layout.append(
            SlabParameter(name=name, dtype=str(dtype).removeprefix("torch."), shape=list(shape), offset=offset)
        )
        offset += math.ceil(math.prod(shape) * dtype.itemsize / ALIGNMENT) * ALIGNMENT
    return layout, offset


class WeightSlab:
    """Anonymous shared memory that other processes of the node map by `path`.

    Args:
        nbytes: Size in bytes.
    """

    def __init__(self, nbytes: int) -> None:
        self._fd = os.memfd_create("policy-weights")
        os.ftruncate(self._fd, nbytes)
        self._release = weakref.finalize(self, os.close, self._fd)  # also where a slab is put out of use by another
        self.nbytes = nbytes
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.buffer = _map(self._fd, nbytes)

    def close(self) -> None:
        """Lets go of the memory; it is freed when the last process that maps it has done so too."""
        self._release()
        self.buffer = torch.empty(0, dtype=torch.uint8)


def map_slab(path: str, nbytes: int) -> torch.Tensor:
    """Another process's slab as a uint8 tensor [nbytes], without copying."""
    fd = os.open(path, os.O_RDWR)
    try:
        return _map(fd, nbytes)
    finally:
        os.close(fd)


def _map(fd: int, nbytes: int) -> torch.Tensor:
    # Populating at once costs one pass of the kernel; faulting page by page inside the first copy costs several times that.
    return torch.frombuffer(mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE), dtype=torch.uint8)


def slab_tensor(buffer: torch.Tensor, parameter: SlabParameter) -> torch.Tensor:
    """The parameter's view into a slab's bytes."""
    dtype = getattr(torch, parameter.dtype)
    size = math.prod(parameter.shape) * dtype.itemsize
    return buffer[parameter.offset : parameter.offset + size].view(dtype).view(parameter.shape)


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


class SharedMemorySender:
    """The sending end of the backend `shared_memory`.

    Args:
        source: What to send.
        client: The engines.
    """

    def __init__(self, source: WeightSource, client: EngineClient) -> None:
        self.source, self.client = source, client
        self.layout, nbytes = plan_slab(source.on_the_wire())
        self.slab = WeightSlab(nbytes)
        self._targets = [(parameter.name, slab_tensor(self.slab.buffer, parameter)) for parameter in self.layout]
        layout = [asdict(parameter) for parameter in self.layout]
        client.init_weight_transfer_engine({"path": self.slab.path, "nbytes": nbytes, "layout": layout})

    def send_weights(self, version: int) -> dict[str, float]:
        """Copies the parameters into the slab and has every engine load them.

        Returns:
            `sync/bytes`; `sync/copy_seconds`, the transport on this node; `sync/load_seconds`, vLLM's loading and repacking
            (and the way to other nodes, if any); `sync/seconds`, all of it.
        """
        start = time.perf_counter()
        self.copy_to_slab()
        copied = time.perf_counter()
        self.client.next_version = version
        self.client.start_weight_update()
        self.client.update_weights({})
        self.client.finish_weight_update()
        done = time.perf_counter()
        return {
            "sync/bytes": float(self.slab.nbytes),
            "sync/copy_seconds": copied - start,
            "sync/load_seconds": done - copied,
            "sync/seconds": done - start,
        }

    @torch.no_grad()
    def copy_to_slab(self) -> None:
        """One pass over all parameters: cast, transposition to the published layout and copy in one."""
        for (name, target), (source_name, tensor) in zip(self._targets, self.source.tensors(), strict=True):
            assert name == source_name, f"parameters changed their order: {name} became {source_name}"
            target.copy_(tensor)


class AdapterSender:
    """Sends LoRA's adapters alone; the engines hold what they adapt since their start.

    Args:
        files: Makes the adapters' files, as `policies.lora.adapter_files`; called once per sync.
        client: The engines.
    """

    def __init__(self, files: Callable[[], Mapping[str, bytes]], client: EngineClient) -> None:
        self.files, self.client = files, client

    def send_weights(self, version: int) -> dict[str, float]:
        """Has every engine load the adapters.

        Returns:
            `sync/bytes` and `sync/seconds`.
        """
        start = time.perf_counter()
        files = self.files()
        self.client.load_adapter(files, version)
        size = sum(len(content) for content in files.values())
        return {"sync/bytes": float(size), "sync/seconds": time.perf_counter() - start}


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
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES
        from vllm.utils.network_utils import get_ip, get_open_port

        from rollout.weights.vllm_source import VllmWeightSource

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


def choose_backend(config: RolloutConfig, *, learner_gpus: int) -> Backend:
    """What `rollout.weight_transfer` says, or what fits the devices.

    Raises:
        ValueError: If the choice does not fit the devices.
    """
    on_gpus = learner_gpus > 0 and config.gpus_per_engine > 0
    if config.weight_transfer == "auto":
        return "nccl" if on_gpus else "shared_memory"
    if config.weight_transfer != "shared_memory" and not on_gpus:
        raise ValueError(
            f"rollout.weight_transfer = {config.weight_transfer} needs GPUs on both sides, got learner.gpus = {learner_gpus} "
            f"and rollout.gpus_per_engine = {config.gpus_per_engine}: use shared_memory"
        )
    if config.shares_gpus and learner_gpus != config.num_engines * config.gpus_per_engine:
        raise ValueError(
            "rollout.weight_transfer = ipc has engines and learner on the same GPUs, got "
            f"learner.gpus = {learner_gpus} and {config.num_engines} engines of {config.gpus_per_engine} GPUs: "
            "make it as many, leave it to placement colocated, or use nccl"
        )
    return config.weight_transfer


def make_sender(
    backend: Backend, source: WeightSource, client: EngineClient, *, num_workers: int, rank: int = 0
) -> Sender:
    """The sending end of `backend` on a rank of the learner, connected to the engines; by `ipc` all ranks have one."""
    if backend == "shared_memory":
        return SharedMemorySender(source, client)
    return VllmSender(backend, source, client, num_workers=num_workers, rank=rank)
