"""The learner's ranks: processes with a shard of the policy each. Without torch.distributed there is one."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def num_ranks() -> int:
    """Number of processes that share the policy."""
    return dist.get_world_size() if dist.is_initialized() else 1


def this_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


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
