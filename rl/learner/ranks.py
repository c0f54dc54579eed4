"""The learner's ranks: processes with a shard of the policy each. Without torch.distributed there is one."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""Longest wait of ranks for one another. Loading a large policy takes long, and a rank that dies is noticed without this limit."""


def num_ranks() -> int:
    """Number of processes that share the policy."""
    return dist.get_world_size() if dist.is_initialized() else 1


def this_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def join_ranks(
    store: dist.Store, rank: int, num_ranks: int, *, on_gpus: bool, address: str, timeout: timedelta
) -> None:
    """Makes this process a rank. Waits until all others have joined.

    Args:
        store: The store of rank 0, through which the ranks find each other.
        rank: Number of this rank.
        num_ranks: Number of all ranks.
        on_gpus: True if tensors on GPUs go by NCCL; tensors in host memory and Python objects always go by gloo.
        address: This machine's address, as the others reach it.
        timeout: Longest wait of ranks for one another.
    """
    # By itself gloo binds to the address of the host's name. On Debian that is 127.0.1.1, out of reach of other machines.
    if interface := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=timeout)


def rank_mesh(replicas: int, device_type: str) -> DeviceMesh | None:
    """Arranges the ranks for `shard_policy`. Every rank must call it.

    Args:
        replicas: Replicas of the policy. The ranks of one have consecutive numbers.
        device_type: cpu or cuda, the device of the forward passes.

    Returns:
        A mesh [ranks], or [replicas, ranks of each] with several replicas; None without torch.distributed.
    """
    if not dist.is_initialized():
        return None
    if replicas == 1:
        return init_device_mesh(device_type, (num_ranks(),))
    mesh = torch.arange(num_ranks()).view(replicas, -1)
    # `init_device_mesh` would give these groups torch's own limit.
    shard, _ = dist.new_subgroups_by_enumeration(mesh.tolist(), timeout=COLLECTIVE_TIMEOUT)
    replicate, _ = dist.new_subgroups_by_enumeration(mesh.T.tolist(), timeout=COLLECTIVE_TIMEOUT)
    return DeviceMesh.from_group([replicate, shard], device_type, mesh, mesh_dim_names=("replicate", "shard"))


def interface_of(address: str) -> str | None:
    """Returns the network interface of this machine that has an address; `None` if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def gather(value: T) -> list[T]:
    """Every rank's `value` in rank order, on every rank. For small values; tensors must be on the CPU."""
    if num_ranks() == 1:
        return [value]
    values: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def gather_on_first(value: T) -> list[T]:
    """Every rank's `value` in rank order on rank 0; nothing on the others. Tensors must be on the CPU."""
    if num_ranks() == 1:
        return [value]
    values: list[T | None] | None = [None] * num_ranks() if this_rank() == 0 else None
    dist.gather_object(value, values, dst=0)
    return values or []  # type: ignore[return-value]


def sum_over_ranks(*values: float) -> list[float]:
    """Each value, summed over all ranks."""
    columns = zip(*gather(values), strict=True)
    return [sum(column) for column in columns]
