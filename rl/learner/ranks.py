"""The learner's ranks: processes that hold a share of the policy each. Without torch.distributed there is one."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def num_ranks() -> int:
    """How many processes learn together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def this_rank() -> int:
    """The number of this process among them."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather(value: T) -> list[T]:
    """Every rank's `value`, in their order, on every rank; tensors belong on the CPU, and small they should be."""
    if num_ranks() == 1:
        return [value]
    values: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]
