"""Senders of new weights from the learner to the engines: shared memory, LoRA adapters, and vLLM's NCCL and CUDA IPC.

`shared_memory` copies the learner's parameters once into a slab, from which every engine on the node loads. Engines on another node
map a replica of the slab there (`rollout.weights.slab_replicas`). No weight is ever pickled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch

from rollout.config import Backend, RolloutConfig
from rollout.weights.slab import WeightSlab, plan_slab, slab_tensor
from rollout.weights.source import EngineClient, Sender, WeightSource, summed
from rollout.weights.update import RayEngineClient


class SharedMemorySender:
    """Sends weights by the backend `shared_memory`.

    Args:
        source: The weights.
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
        """Copies the parameters into the slab and makes every engine load them.

        Returns:
            `sync/bytes`; `sync/copy_seconds`, the transport on this node; `sync/load_seconds`, vLLM's loading and repacking and the
            transport to other nodes; `sync/seconds`, the total.
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
        """Casts, transposes to the published layout and copies, in one pass over all parameters."""
        for (name, target), (source_name, tensor) in zip(self._targets, self.source.tensors(), strict=True):
            assert name == source_name, f"parameters changed their order: {name} became {source_name}"
            target.copy_(tensor)


class AdapterSender:
    """Sends LoRA's adapters alone. The engines have held the base weights since their start.

    Args:
        files: Returns the adapters' files, as `policies.lora.adapter_files`. Called once per sync.
        client: The engines.
    """

    def __init__(self, files: Callable[[], Mapping[str, bytes]], client: EngineClient) -> None:
        self.files, self.client = files, client

    def send_weights(self, version: int) -> dict[str, float]:
        """Makes every engine load the adapters.

        Returns:
            `sync/bytes` and `sync/seconds`.
        """
        start = time.perf_counter()
        files = self.files()
        self.client.load_adapter(files, version)
        size = sum(len(content) for content in files.values())
        return {"sync/bytes": float(size), "sync/seconds": time.perf_counter() - start}


def choose_backend(config: RolloutConfig, *, learner_gpus: int) -> Backend:
    """Returns the choice of `rollout.weight_transfer`; of `auto`, the backend that fits the devices.

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


def make_sender(backend: Backend, source: WeightSource, client: RayEngineClient, *, rank: int = 0) -> Sender:
    """Returns the sender of `backend` on a rank of the learner, connected to the engines. With `ipc` every rank has one."""
    if client.config.verify_weights:
        source, client.sums = summed(source)
    if backend == "shared_memory":
        return SharedMemorySender(source, client)
    from rollout.weights.vllm_sender import IpcSender, NcclSender

    return NcclSender(source, client) if backend == "nccl" else IpcSender(source, client, rank=rank)
