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
"""Bytes. Every parameter starts on a cache line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabParameter:
    """The place of one parameter in a slab."""

    name: str
    """Name in the published checkpoint."""
    dtype: str
    """As in `torch.<dtype>`."""
    shape: list[int]
    """Shape in the published checkpoint."""
    offset: int
    """First byte."""


def plan_slab(
    parameters: Iterable[tuple[str, torch.dtype, Sequence[int]]],
) -> tuple[list[SlabParameter], int]:
    """Returns the layout of a slab, with the parameters one after the other.

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
        self._release = weakref.finalize(self, os.close, self._fd)  # also if another slab replaces this one
        self.nbytes = nbytes
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.buffer = _map(self._fd, nbytes)

    def close(self) -> None:
        """Unmaps the memory. It is freed when the last process has unmapped it."""
        self._release()
        self.buffer = torch.empty(0, dtype=torch.uint8)


def map_slab(path: str, nbytes: int) -> torch.Tensor:
    """Maps another process's slab. Returns a uint8 tensor [nbytes], without copying."""
    fd = os.open(path, os.O_RDWR)
    try:
        return _map(fd, nbytes)
    finally:
        os.close(fd)


def _map(fd: int, nbytes: int) -> torch.Tensor:
    # MAP_POPULATE costs one pass of the kernel. Faulting page by page in the first copy costs several times that.
    return torch.frombuffer(mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE), dtype=torch.uint8)


def slab_tensor(buffer: torch.Tensor, parameter: SlabParameter) -> torch.Tensor:
    """Returns the view of a parameter into a slab's bytes."""
    dtype = getattr(torch, parameter.dtype)
    size = math.prod(parameter.shape) * dtype.itemsize
    return buffer[parameter.offset : parameter.offset + size].view(dtype).view(parameter.shape)
