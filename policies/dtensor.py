"""Rows of sharded parameters (DTensor): this rank's, or all of them."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local_shard(tensor: Tensor) -> tuple[Tensor, int]:
    """Returns this rank's rows, which share the tensor's memory, and the number of the first; all rows if it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.detach().to_local(), offset[0]


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns the rows of all ranks. Every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
