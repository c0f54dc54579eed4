"""Memory of a weight sync on GPUs, besides what learner and engine keep."""

from __future__ import annotations

from policies.model_sizes import ModelShape
from rl.config import LearningOptions
from rl.hardware.learner_memory import MemoryItem

PIECE = 2**30
"""Bytes of a piece by NCCL, and at least of the buffer of CUDA IPC: vLLM's default."""


def sync_memory(config: LearningOptions, shape: ModelShape) -> list[MemoryItem]:
    """Returns what a sync takes on a rank's GPU, and on the engine's if they share it.

    A parameter is gathered in the engine's precision, and made contiguous. LoRA adds a float32 sum and product of its matrices.
    """
    if config.lora.sync == "adapter":
        return []
    size = 4 if config.rollout.dtype == "float32" else 2
    largest = size * shape.largest
    copies = 2 * largest + (8 * shape.largest if config.lora.rank else 0)
    one = f"the largest has {shape.largest / 1e9:.2f}G parameters"
    gathered = MemoryItem(name="gathered parameter", bytes=float(copies), why=one)
    if config.rollout.shares_gpus:
        buffer = max(PIECE, largest)
        return [gathered, MemoryItem(name="buffer of CUDA IPC", bytes=2.0 * buffer, why="and the engine's copy of it")]
    # Two pieces are on their way, each as its parameters and as a whole. A parameter more than fits ends a piece.
    return [gathered, MemoryItem(name="pieces for NCCL", bytes=4.0 * (PIECE + largest), why="two, each twice")]
