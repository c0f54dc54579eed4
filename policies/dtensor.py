"""A parameter and the rows of it that this rank holds; all of them where the policy is not sharded."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local_shard(tensor: Tensor) -> tuple[Tensor, int]:
    """This rank's rows, in their own memory, and the number of the first."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.detach().to_local(), offset[0]


def full_tensor(tensor: Tensor) -> Tensor:
    """Those of all ranks, which must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
