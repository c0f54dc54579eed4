"""Measures how weights leave a learner: gathered from shards, packed into a buffer, and read from it by another process.

    python -m bench.export                                     the small policy, on a CPU
    python -m bench.export --shape 2B --device cuda --offload  its shards in host memory, sent from the GPU

That is a sender's side of a weight sync without vLLM: FSDP2 on one rank, and on a GPU CUDA IPC to the reader. The reader copies
what it finds and adds it up. The bench imports neither Ray nor vLLM.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import tyro
from rich.console import Console
from rich.table import Table

from bench.learner import Options as LearnerOptions
from bench.learner import Shape, saved_policy
from policies.export import exported_metadata, exported_parameters
from rl.config import LearnerConfig, LearningOptions
from rl.learner.policy import load_trainable
from rl.learner.ranks import rank_mesh

WIRE = torch.bfloat16
"""Precision in which weights are sent."""
READER_SECONDS = 120.0
"""Longest wait for the reader, which may have died."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    shape: Shape = "small"
    """The policy: small, or a published size."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the buffer, and of the learner's passes."""
    offload: bool = False
    """Keeps the learner's shards in host memory."""
    policy: Path | None = None
    """Folder that keeps the policy for later measurements; default: a temporary folder."""
    buffer_mib: int = 1024
    """Size of the buffer; at least the largest parameter."""
    output: Path = Path("bench/results/export.json")
    """File of the figures."""


def main(options: Options) -> None:
    """Measures, prints a table, and writes JSON."""
    dist.init_process_group("cpu:gloo,cuda:nccl" if options.device == "cuda" else "gloo", **one_rank())
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = LearnerOptions(shape=options.shape, device=options.device)
            folder = saved_policy(source, options.policy or Path(scratch))
            learner = LearnerConfig(dtype="bfloat16", gpus=int(options.device == "cuda"), offload=options.offload)
            config = LearningOptions(model=str(folder), learner=learner)
            mesh = rank_mesh(1, options.device)
            model = load_trainable(config, folder, torch.device(options.device), mesh).model
        report(options, measure(options, model))
    finally:
        dist.destroy_process_group()


def one_rank() -> dict[str, Any]:
    """Returns the arguments of a process group of this process alone."""
    return {"store": dist.HashStore(), "rank": 0, "world_size": 1}


@torch.no_grad()
def measure(options: Options, model: Any) -> dict[str, float]:
    """Returns bytes on the wire, and seconds: to gather, to gather and pack, and until another process has read it all."""
    sizes = [shape.numel() for _, _, shape in exported_metadata(model)]
    length = max(options.buffer_mib * 2**20 // WIRE.itemsize, *sizes)
    buffer = torch.zeros(length, dtype=WIRE, device=options.device)

    def gather() -> None:
        for _ in exported_parameters(model, WIRE):
            pass

    def pack() -> None:
        send(model, buffer, lambda used: None)

    seconds = {"gather": timed(gather), "pack": timed(pack)}
    context = multiprocessing.get_context("spawn")
    asked, answers = context.Queue(), context.Queue()
    reader = context.Process(target=read, args=(buffer, asked, answers), daemon=True)
    reader.start()
    answers.get(timeout=READER_SECONDS)  # it has started, and has its CUDA context

    sums = [0.0]

    def hand_over(used: int) -> None:
        synchronise()
        asked.put(used)
        sums[0] = answers.get(timeout=READER_SECONDS)

    seconds["hand over"] = timed(lambda: send(model, buffer, hand_over))
    asked.put(None)
    reader.join()
    expected = sum(tensor.to(WIRE).sum(dtype=torch.float64).item() for _, tensor in exported_parameters(model, WIRE))
    assert abs(sums[0] - expected) <= 1e-9 * sum(sizes), f"the reader found {sums[0]}, and {expected} was sent"
    return {"bytes": float(sum(sizes) * WIRE.itemsize), **seconds}


def send(model: Any, buffer: torch.Tensor, hand_over: Callable[[int], None]) -> None:
    """Packs all weights into the buffer, and hands it over whenever it is full, with the number of its elements."""
    used = 0
    for _, tensor in exported_parameters(model, WIRE):
        size = tensor.numel()
        if used + size > len(buffer):
            hand_over(used)
            used = 0
        buffer[used : used + size].view(tensor.shape).copy_(tensor)  # casts and transposes on the way
        used += size
    hand_over(used)


def read(buffer: torch.Tensor, asked: Any, answers: Any) -> None:
    """Runs in the other process: copies what it is told is there, and answers with the sum of all so far."""
    own, total = torch.empty_like(buffer), 0.0
    answers.put(total)
    while (used := asked.get()) is not None:
        own[:used].copy_(buffer[:used])
        total += own[:used].sum(dtype=torch.float64).item()
        answers.put(total)


def timed(work: Callable[[], None]) -> float:
    """Returns the seconds that work takes, on the GPU too."""
    synchronise()
    begin = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - begin


def synchronise() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(options: Options, figures: dict[str, float]) -> None:
    """Prints the table and writes the figures."""
    gigabytes = figures["bytes"] / 1e9
    where = "shards in host memory" if options.offload else f"shards on {options.device}"
    table = Table("", "s", "GB/s", title=f"{options.shape}, {gigabytes:.3g} GB in {WIRE}, {where}")
    for name, value in figures.items():
        if name != "bytes":
            table.add_row(name, f"{value:.3g}", f"{gigabytes / value:.3g}")
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
