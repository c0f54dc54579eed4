"""Sums of weights. The learner sums what it sends, and each engine what has arrived (`rollout.verify_weights`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rollout.types import EngineFailed

CHUNK = 1 << 18
"""Elements that are summed at once: 2 MB of integers, which a core's cache holds."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the integers with its bits."""


def tensor_sum(tensor: Tensor) -> int:
    """Returns Σ (i + 1) · bits(xᵢ) modulo 2⁶⁴, over all elements in their order.

    A change of one element changes the sum, and so does an exchange of two that differ. Sums of integers do not depend on the order
    of their terms, so CPUs and GPUs agree.
    """
    bits = tensor.detach().contiguous().view(-1).view(INTEGERS[tensor.element_size()])
    places = torch.arange(1, min(CHUNK, bits.numel()) + 1, device=bits.device)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), CHUNK):
        chunk = bits[start : start + CHUNK].long()
        total += (chunk * places[: len(chunk)]).sum() + start * chunk.sum()
    return int(total)


def file_sums(files: Mapping[str, bytes]) -> dict[str, int]:
    """Returns the sums of an adapter's files, by name."""
    return {
        name: tensor_sum(torch.frombuffer(bytearray(content), dtype=torch.uint8)) for name, content in files.items()
    }


def require_same(sent: Mapping[str, int], arrived: Mapping[str, int]) -> None:
    """Compares the sums of what has arrived with those of what was sent.

    Raises:
        EngineFailed: They differ.
    """
    names = [name for name in sorted(sent.keys() | arrived.keys()) if sent.get(name) != arrived.get(name)]
    if not names:
        return
    first = names[0]
    how = "is missing" if first not in arrived else "was not sent" if first not in sent else "has other bits"
    raise EngineFailed(
        f"{len(names)} of {len(sent)} weights are not the learner's after a sync: {first} {how} (rollout.verify_weights)"
    )
