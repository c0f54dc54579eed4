"""One slab of shared memory for all weights of a policy, which every engine of the node maps.

A slab is an anonymous memory file. Nothing appears in `/dev/shm`, and the kernel frees it with its last process, however that dies.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

ALIGNMENT = 64
"""Bytes: every parameter starts on a cache line."""


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
