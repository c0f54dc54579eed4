"""Files of weights: opened and not read, or copied into host memory and not yet written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Returns weight name → open file, until the stack closes; files are memory-mapped, not read."""
    files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorFile:
    """A safetensors file to write."""

    name: str
    """Path in the folder of a checkpoint."""
    tensors: dict[str, Tensor]
    """Contiguous tensors in host memory."""
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    def write(self, folder: Path) -> Path:
        """Writes the file and returns its path."""
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, path, metadata=dict(self.metadata))
        return path


def write_files(files: Iterable[TensorFile], folder: Path) -> list[Path]:
    """Writes files one by one while the next is made. Takes all of them, whatever fails: other ranks may gather beside it.

    Returns:
        The paths of the files.

    Raises:
        OSError: A file could not be written.
    """
    written: list[Future[Path]] = []
    with ThreadPoolExecutor(1) as writer:
        for file in files:
            wait(written)  # no more than two files are in memory
            written.append(writer.submit(file.write, folder))
            del file
    return [writing.result() for writing in written]
