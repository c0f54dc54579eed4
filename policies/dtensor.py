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
    """Returns the rows of all ranks; of a shard in host memory, on the GPU, if the ranks have GPUs. Every rank must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    mesh = tensor.device_mesh
    if (
        mesh.device_type == "cuda" and tensor.device.type == "cpu"
    ):  # gloo would gather offloaded shards at a tenth of NCCL's speed
        local = tensor.to_local().to("cuda")
        shape, stride = tensor.shape, tensor.stride()
        tensor = DTensor.from_local(local, mesh, tensor.placements, run_check=False, shape=shape, stride=stride)
    return tensor.full_tensor()
