"""Memory plan of a run on GPUs, computed before anything starts: learner, engine, and whether both fit."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
from rich.console import Group as Lines
from rich.table import Table

from policies.model_sizes import ModelShape
from rl.config import LearningOptions, TeacherConfig
from rl.hardware.learner_memory import MemoryItem, checkpoint_size, peak_memory, state_memory
from rl.hardware.sync_memory import sync_memory
from rollout.cluster import gpus_of_nodes
from rollout.config import RolloutConfig

GIB = 2**30
HEADROOM = 0.06
"""Share of a GPU that is kept free for CUDA's context, NCCL, and fragmentation in torch's allocator."""
ENGINE_OVERHEAD = 2 * GIB
"""vLLM's CUDA graphs, workspaces and context."""
ASLEEP, ASLEEP_PARALLEL = 1.0 * GIB, 7.0 * GIB
"""GPU memory of a sleeping engine on one GPU, and on each of several: there NCCL's buffers and graphs stay (public reports)."""
PINNED = 1.3
"""Host memory of offloaded tensors by their bytes: each tensor's size is rounded up to a power of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of a cluster."""

    device_gib: float
    """Memory of a GPU, in GiB: 80 for an H100, 140 for an H200."""
    gpus: int = 8
    """GPUs, which share the host memory."""
    cpus: int | None = None
    """CPUs; None if it is not known."""
    host_gib: float = math.inf
    """Host memory, in GiB; infinite if it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The memory that a run needs."""

    device_bytes: float
    """Memory of a GPU."""
    learner: Sequence[MemoryItem]
    """On a rank's GPU: first what it keeps between steps, then what it adds at the peak."""
    num_kept: int
    """Items of `learner` that a rank keeps between steps."""
    host: Sequence[MemoryItem]
    """In a node's host memory."""
    host_bytes: float = math.inf
    """Host memory of a node; infinite if it is not known."""
    checkpoint: Sequence[MemoryItem] = ()
    """On disk."""
    engine: Sequence[MemoryItem] = ()
    """On each GPU of an engine; empty without engines."""
    sync: Sequence[MemoryItem] = ()
    """On a rank's GPU in a weight sync, besides what the rank keeps; empty without engines."""
    shared: bool = False
    """True if learner and engines take turns on the same GPUs."""
    sequences: float = math.inf
    """Sequences of maximal length that an engine's cache holds at once."""
    problems: Sequence[str] = ()
    """Reasons why it does not fit, each with a remedy; empty if it fits."""

    @property
    def learner_peak(self) -> float:
        """Bytes on a rank's GPU at the peak of a step."""
        return sum(item.bytes for item in self.learner)

    @property
    def learner_kept(self) -> float:
        """Bytes on a rank's GPU between steps."""
        return sum(item.bytes for item in self.learner[: self.num_kept])

    @property
    def engine_total(self) -> float:
        """Bytes on each GPU of an engine."""
        return sum(item.bytes for item in self.engine)

    @property
    def sync_total(self) -> float:
        """Bytes on a rank's GPU in a weight sync. An engine that shares it has its weights there, and not yet its cache."""
        engine = self.engine[0].bytes + ENGINE_OVERHEAD if self.shared else 0.0
        return self.learner_kept + engine + sum(item.bytes for item in self.sync)

    @property
    def host_total(self) -> float:
        """Bytes in a node's host memory."""
        return sum(item.bytes for item in self.host)

    @property
    def checkpoint_total(self) -> float:
        """Bytes of a checkpoint."""
        return sum(item.bytes for item in self.checkpoint)

    @property
    def fits(self) -> bool:
        """True without problems."""
        return not self.problems


def plan_memory(config: LearningOptions, shape: ModelShape, machine: Machine, *, group_size: int) -> MemoryPlan:
    """Returns the memory plan of a run on GPUs.

    Args:
        config: The options, with the placement resolved.
        shape: The model's sizes.
        machine: Each of the machines.
        group_size: Completions per prompt, which share its images.

    Raises:
        ValueError: The config puts learner or engines on the CPU.
    """
    _require_gpus("rollout.gpus_per_engine", config.rollout.gpus_per_engine)
    engine, sequences = _engine(config.rollout, shape, machine.device_gib * GIB)
    learner = plan_learner(config, shape, machine, group_size=group_size)
    plan = replace(
        learner,
        engine=engine,
        shared=config.rollout.shares_gpus,
        sequences=sequences,
        sync=sync_memory(config, shape),
    )
    return replace(plan, problems=_problems(config, plan))


def plan_learner(config: LearningOptions, shape: ModelShape, machine: Machine, *, group_size: int) -> MemoryPlan:
    """Returns the memory plan of a learner without engines; see `plan_memory`. In supervised learning, a group has one answer."""
    _require_gpus("learner.gpus", config.learner.gpus)
    states, peak = state_memory(config, shape), peak_memory(config, shape, group_size)
    kept = [] if config.learner.offload else states
    plan = MemoryPlan(
        device_bytes=machine.device_gib * GIB,
        host_bytes=machine.host_gib * GIB,
        learner=[*kept, *peak],
        num_kept=len(kept),
        host=_host(config, shape, states, machine.gpus),
        checkpoint=checkpoint_size(config, shape),
    )
    return replace(plan, problems=_problems(config, plan))


def _require_gpus(option: str, count: int) -> None:
    if not count:
        raise ValueError(f"{option} = 0, but a memory plan needs GPUs: set it, or a placement")


def _engine(rollout: RolloutConfig, shape: ModelShape, device: float) -> tuple[list[MemoryItem], float]:
    """Returns what vLLM needs on each GPU, and the longest sequences that fit. Its cache takes what is left of its share."""
    width = rollout.gpus_per_engine
    size = 4 if rollout.dtype == "float32" else 2
    share = rollout.gpu_memory_utilization * device
    over = f" / {width} GPUs" if width > 1 else ""
    weights = size * shape.parameters / width
    mlp = shape.experts_per_token * shape.expert_intermediate if shape.experts else shape.intermediate
    batched = max(rollout.max_batched_tokens, rollout.max_model_len)  # as the engine sets it
    work = (
        ENGINE_OVERHEAD
        + batched * size * (4 * shape.hidden + 4 * mlp / width)
        + 6 * rollout.max_running * shape.vocabulary
    )
    per_token = shape.kv_token_bytes * size / 2 / min(width, shape.kv_heads)
    cache = max(0.0, share - weights - work)
    sequences = cache / per_token / rollout.max_model_len
    lines = [
        MemoryItem(name="weights", bytes=weights, why=f"{size} B × {shape.parameters / 1e9:.2f}G{over}"),
        MemoryItem(name="working memory", bytes=work, why=f"{batched} tokens at once, CUDA graphs"),
        MemoryItem(
            name="key-value cache",
            bytes=cache,
            why=f"the rest of {rollout.gpu_memory_utilization:.0%}: {cache / per_token:,.0f} tokens, "
            f"{sequences:.1f} sequences of {rollout.max_model_len}",
        ),
    ]
    return lines, sequences


def _host(
    config: LearningOptions, shape: ModelShape, states: Sequence[MemoryItem], gpus_per_node: int
) -> list[MemoryItem]:
    """Returns what a node keeps in host memory."""
    items = []
    ranks = min(config.learner.gpus, gpus_per_node)
    if config.learner.offload:
        total = PINNED * ranks * sum(item.bytes for item in states)
        why = f"offloaded, of {ranks} ranks; torch rounds pinned memory up"
        items.append(MemoryItem(name="the learner's state", bytes=total, why=why))
    if config.rollout.shares_gpus:
        engines = max(1, ranks // config.rollout.gpus_per_engine)
        size = 4 if config.rollout.dtype == "float32" else 2
        items.append(
            MemoryItem(
                name="sleeping engines",
                bytes=float(engines * size * shape.parameters),
                why=f"weights of {engines} while the learner learns",
            )
        )
    return items


def _problems(config: LearningOptions, plan: MemoryPlan) -> list[str]:
    room, problems = (1 - HEADROOM) * plan.device_bytes, []
    asleep = (ASLEEP if config.rollout.gpus_per_engine == 1 else ASLEEP_PARALLEL) if plan.shared else 0.0
    if plan.learner_peak + asleep > room:
        remedies = [
            *(["learner.gradient_checkpointing"] if not config.learner.gradient_checkpointing else []),
            *(["learner.replicas 1"] if config.learner.shards < config.learner.gpus else []),
            *(["learner.offload"] if not config.learner.offload else []),
            "a smaller learner.microbatch_tokens",
            *(["lora.rank 16"] if not config.lora.rank else []),
            "more GPUs",
        ]
        problems.append(
            f"the learner needs {format_gib(plan.learner_peak + asleep)} GiB of each GPU, which has room for {format_gib(room)}: "
            f"use {', '.join(remedies)}"
        )
    if plan.shared and plan.learner_kept + plan.engine_total > room:
        problems.append(
            f"while engines generate, the learner keeps {format_gib(plan.learner_kept)} GiB of each GPU and the engines need "
            f"{format_gib(plan.engine_total)} GiB, but there is room for {format_gib(room)}: use learner.offload, or a lower "
            "rollout.gpu_memory_utilization"
        )
    if plan.sync and plan.sync_total > room:
        problems.append(
            f"in a weight sync a GPU of the learner needs {format_gib(plan.sync_total)} GiB, and has room for {format_gib(room)}: "
            "use learner.offload" + (", or lora.sync adapter" if config.lora.rank else "")
        )
    if plan.host_total > plan.host_bytes:
        problems.append(
            f"a node needs {format_gib(plan.host_total)} GiB of host memory and has {format_gib(plan.host_bytes)}: use more nodes"
            + (", or lora.rank 16" if not config.lora.rank else "")
        )
    if plan.sequences < 1:
        problems.append(
            f"the engine's cache holds {plan.sequences:.2f} sequences of rollout.max_model_len = "
            f"{config.rollout.max_model_len}: use more rollout.gpus_per_engine, or a higher rollout.gpu_memory_utilization"
        )
    return problems


def format_gib(value: float) -> str:
    """Returns bytes in GiB, to a tenth."""
    return f"{value / GIB:.1f}"


def memory_table(plan: MemoryPlan, *, keep_checkpoints: int) -> Lines:
    """Returns a table of learner, engine, host memory and checkpoints, and below it whether they fit.

    Args:
        plan: The plan.
        keep_checkpoints: Checkpoints that the run keeps; 0: all.
    """
    on_disk = "each; all are kept"
    if keep_checkpoints:  # an old one goes when the new one is whole
        most = (keep_checkpoints + 1) * plan.checkpoint_total
        on_disk = f"each; {format_gib(most)} with {keep_checkpoints} kept and one being written"
    table = Table("", "GiB", "", title=f"memory of a GPU of {format_gib(plan.device_bytes)} GiB", title_justify="left")
    for title, items, total, why in (
        ("learner, at the peak", plan.learner, plan.learner_peak, ""),
        ("engine" + (", while the learner waits" if plan.shared else ""), plan.engine, plan.engine_total, ""),
        ("learner's GPU in a weight sync", plan.sync, plan.sync_total, "with the weights that are there"),
        ("host memory of a node", plan.host, plan.host_total, ""),
        ("checkpoints on disk", plan.checkpoint, plan.checkpoint_total, on_disk),
    ):
        if items:
            table.add_row(f"[bold]{title}", f"[bold]{format_gib(total)}", f"[dim]{why}")
        for item in items:
            table.add_row(f"  {item.name}", format_gib(item.bytes), f"[dim]{item.why}")
    verdict = ["[green]fits"] if plan.fits else [f"[bold red]does not fit:[/] {problem}" for problem in plan.problems]
    return Lines(table, *verdict)


def plan_teacher(teacher: TeacherConfig, rollout: RolloutConfig, shape: ModelShape, machine: Machine) -> Lines:
    """Returns a table of what the teacher's engines need on each GPU, and below it whether that fits.

    Args:
        teacher: The teacher, on GPUs.
        rollout: The options of the policy's engines.
        shape: The teacher's sizes.
        machine: The machine of its engines.
    """
    device_gib = machine.device_gib
    lines, sequences = _engine(teacher.engine_config(rollout), shape, device_gib * GIB)
    tokens = teacher.max_batched_tokens
    logits = MemoryItem(
        name="logits", bytes=8.0 * tokens * shape.vocabulary, why=f"8 B × {tokens} tokens × the vocabulary"
    )
    total, room = sum(item.bytes for item in (*lines, logits)), (1 - HEADROOM) * device_gib * GIB
    table = Table("teacher", "GiB", "", title=f"a teacher's GPU of {device_gib:.1f} GiB", title_justify="left")
    for item in (*lines, logits):
        table.add_row(item.name, format_gib(item.bytes), f"[dim]{item.why}")
    verdict = "[green]fits"
    if sequences < 1:
        verdict = (
            f"[bold red]does not fit:[/] its cache holds {sequences:.2f} sequences: use more teacher.gpus_per_engine"
        )
    elif total > room:
        needed = f"{format_gib(total)} GiB of {format_gib(room)}"
        verdict = f"[bold red]does not fit:[/] {needed}: use a lower teacher.gpu_memory_utilization"
    return Lines(table, verdict)


def this_machine() -> tuple[Machine, bool]:
    """Returns this machine, and whether its GPUs were measured; without one they are assumed to have 80 GiB.

    Of a cluster it has the GPUs of the smallest node: so many are on each.
    """
    import torch

    has_gpus = torch.cuda.is_available()
    machine = Machine(
        gpus=min((count for count in gpus_of_nodes() if count), default=8),
        device_gib=torch.cuda.get_device_properties(0).total_memory / GIB if has_gpus else 80.0,
        cpus=os.cpu_count(),
        host_gib=psutil.virtual_memory().total / GIB,
    )
    return machine, has_gpus
