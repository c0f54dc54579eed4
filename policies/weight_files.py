"""Files of weights, opened and not read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open


def open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Returns weight name → open file, until the stack closes; files are memory-mapped, not read."""
    files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping
