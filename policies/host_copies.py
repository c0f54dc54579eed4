"""Copies of tensors in host memory that is kept from one checkpoint to the next.

The kernel hands out new memory page by page and empties it first, which takes several times as long as the copying.
"""

from __future__ import annotations

from threading import Thread

import torch
from torch import Tensor


class HostCopies:
    """Copies by name. Those of the last checkpoint are overwritten by the next, so its writer has to end before."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._writer: Thread | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(tensor.nbytes for tensor in self._copies.values())

    def begin(self) -> None:
        """Waits for the writer of the copies before."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def read_by(self, writer: Thread) -> None:
        """Notes the thread that writes the copies to files."""
        self._writer = writer

    def copy(self, name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Returns a contiguous copy of a tensor.

        Args:
            name: The tensor's name; the copy of that name is overwritten.
            tensor: The tensor, on any device.
            dtype: Precision of the copy. Default: the tensor's.
        """
        dtype = dtype or tensor.dtype
        copy = self._copies.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != dtype:
            copy = torch.empty(tensor.shape, dtype=dtype, pin_memory=tensor.is_cuda)
            self._copies[name] = copy
        return copy.copy_(tensor)
