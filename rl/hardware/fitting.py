"""Options that make a run fit its GPUs by the memory plan: the cheapest ones that suffice.

Where the learner has whole nodes, each gets a replica of the policy (HSDP) if its GPUs hold one. Under FSDP2 over all ranks, every
layer would cross the network between nodes in every pass. Then, in the order of their cost:

- activation checkpointing: one more forward pass
- smaller microbatches: less work for each kernel
- a smaller share for engines that share the learner's GPUs: a smaller cache
- offload: all states cross the bus in every pass

LoRA changes what is trained, so it is only offered. An option that is set to another value than its default stays.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console

from policies.model_sizes import ModelShape, shape_of_checkpoint
from rl.config import LearnerConfig, LoraConfig, TrainConfig
from rl.hardware.memory import (
    HEADROOM,
    Machine,
    MemoryPlan,
    format_gib,
    memory_table,
    plan_memory,
    plan_teacher,
    this_machine,
)
from rl.hardware.placement import SHARED_MEMORY, DerivedOption, placement_table, with_options
from rollout.config import RolloutConfig

STEP = 0.05
"""Step of rollout.gpu_memory_utilization."""
GOOD_SEQUENCES = 8
"""Sequences that an engine's cache should hold: with fewer, the engine is idle most of the time."""
LORA_RANK = 16
"""Rank of the adapters that are offered where all weights do not fit."""


def fit_to_gpus(config: TrainConfig, console: Console) -> TrainConfig:
    """Returns the config with options that make it fit this machine's GPUs, and prints them and the plan; unchanged on CPUs.

    Args:
        config: The run's config, with its placement resolved.
        console: Prints the options and the memory plan.

    Raises:
        ValueError: It does not fit, there is no such model, it is not a Qwen3-VL, or torch's allocator cannot share memory.
    """
    if not (config.learner.gpus and config.rollout.gpus_per_engine):
        return config
    if config.rollout.shares_gpus:
        _refuse_expandable_segments()
    shape, (machine, is_measured) = shape_of_checkpoint(config.model), this_machine()
    config, options = fitted(config, shape, machine)
    if options:
        console.print(placement_table(options, title="to fit the GPUs"))
    plan = plan_memory(config, shape, machine, group_size=config.group_size)
    console.print(memory_table(plan, keep_checkpoints=config.keep_checkpoints))
    if config.teacher.model is not None:
        console.print(plan_teacher(config.teacher, config.rollout, shape_of_checkpoint(config.teacher.model), machine))
    if not is_measured:
        console.print(f"[dim]assumes GPUs of {machine.device_gib:g} GiB: this machine has none")
    if not (plan.fits or config.allow_overcommit):
        raise ValueError(
            f"the run does not fit GPUs of {machine.device_gib:.0f} GiB: {'; '.join(plan.problems)}"
            f"{_lora_offer(config, shape, machine)}. To start it all the same, use --allow-overcommit"
        )
    return config


def fitted(config: TrainConfig, shape: ModelShape, machine: Machine) -> tuple[TrainConfig, list[DerivedOption]]:
    """Returns the config with the cheapest options by which it fits, and these options; the config itself if nothing helps.

    Args:
        config: The run's config, with its placement resolved.
        shape: The model's sizes.
        machine: Each of the machines.
    """

    def plan(options: list[DerivedOption]) -> MemoryPlan:
        return plan_memory(with_options(config, options), shape, machine, group_size=config.group_size)

    for sequences in (GOOD_SEQUENCES, 1):
        for replicas in _for_replicas(config.learner, machine):
            for savings in _by_cost(config, plan(replicas)):
                options = [*replicas, *savings]
                learner = with_options(config, options).learner
                if replicas and learner.offload:  # each node's CPUs would do the whole optimizer's work
                    continue
                if plan(options).fits and plan(options).sequences >= sequences:
                    options += _threads(learner, machine)
                    return with_options(config, options), options
    return config, []


def _for_replicas(learner: LearnerConfig, machine: Machine) -> Iterator[list[DerivedOption]]:
    """Yields a replica of the policy on each node, where the learner has whole nodes, and then none but the one over all ranks."""
    nodes, left = divmod(learner.gpus, machine.gpus)
    if learner.replicas is None and nodes > 1 and not left:
        why = f"a node's {machine.gpus} GPUs hold a replica: only gradients go between nodes"
        yield [DerivedOption(name="learner.replicas", value=nodes, why=why)]
    yield []


def _refuse_expandable_segments() -> None:
    """Refuses an allocator whose memory neither sleeps in vLLM's engines nor goes by CUDA IPC in containers (pytorch#165685)."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if "expandable_segments:true" in os.environ.get(name, "").lower():
            raise ValueError(
                f"{name} = {os.environ[name]} does not work with engines that share the learner's GPUs: unset it, or use placement "
                "separate"
            )


def _by_cost(config: TrainConfig, plan: MemoryPlan) -> Iterator[list[DerivedOption]]:
    """Yields sets of options that save memory, the cheapest first, beginning with none."""
    for states in _for_states(config, plan):
        for activations in _for_activations(config.learner, config.rollout.max_model_len):
            yield [*activations, *states]


def _for_activations(learner: LearnerConfig, longest: int) -> Iterator[list[DerivedOption]]:
    """Yields sets of options for less activations: checkpointing, and then smaller microbatches, which hold a longest sequence."""
    yield []
    kept: list[DerivedOption] = []
    if not learner.gradient_checkpointing:
        why = "one tensor a layer is kept, for one more forward pass"
        kept = [DerivedOption(name="learner.gradient_checkpointing", value=True, why=why)]
        yield kept
    tokens = learner.microbatch_tokens
    while learner.microbatch_tokens == LearnerConfig.microbatch_tokens and tokens > longest:
        tokens = max(tokens // 2, longest)
        yield [*kept, DerivedOption(name="learner.microbatch_tokens", value=tokens, why="fewer activations at once")]


def _for_states(config: TrainConfig, plan: MemoryPlan) -> Iterator[list[DerivedOption]]:
    """Yields sets of options that make room for the learner's states: none, a smaller share for engines beside them, offload."""
    yield []
    if config.learner.offload:
        return
    share, name = config.rollout.gpu_memory_utilization, "rollout.gpu_memory_utilization"
    is_free = config.rollout.shares_gpus and share in (RolloutConfig.gpu_memory_utilization, SHARED_MEMORY)
    beside = STEP * math.floor((1 - HEADROOM - plan.learner_kept / plan.device_bytes) / STEP)
    if is_free and 0 < beside < share:
        why = f"the learner keeps {format_gib(plan.learner_kept)} GiB"
        yield [DerivedOption(name=name, value=round(beside, 2), why=why)]
    why = "weights, gradients and moments in host memory; layers cross the bus in every pass"
    offload = [DerivedOption(name="learner.offload", value=True, why=why)]
    if is_free and share < RolloutConfig.gpu_memory_utilization:
        why = "the learner's states are in host memory"
        offload.append(DerivedOption(name=name, value=RolloutConfig.gpu_memory_utilization, why=why))
    yield offload


def _threads(learner: LearnerConfig, machine: Machine) -> list[DerivedOption]:
    """Returns the threads of a rank whose optimizer works in host memory."""
    ranks = min(learner.gpus, machine.gpus)
    threads = (machine.cpus or 0) // ranks
    if not learner.offload or learner.threads is not None or threads <= 1:
        return []
    why = f"{machine.cpus} CPUs for {ranks} ranks, whose optimizers work in host memory"
    return [DerivedOption(name="learner.threads", value=threads, why=why)]


def _lora_offer(config: TrainConfig, shape: ModelShape, machine: Machine) -> str:
    """Returns the words that offer LoRA if it would fit."""
    if config.lora.rank:
        return ""
    lora, _ = fitted(replace(config, lora=LoraConfig(rank=LORA_RANK)), shape, machine)
    fits = plan_memory(lora, shape, machine, group_size=config.group_size).fits
    return f"; adapters alone fit: --lora.rank {LORA_RANK}" if fits else ""
