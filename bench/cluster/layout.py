"""The use of a cluster's GPUs by a published size, as a run derives it: from its preset, the placement and the memory plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bench.cluster.inputs import Assumptions
from policies.model_sizes import PUBLISHED
from rl.hardware.fitting import fitted
from rl.hardware.memory import Machine, plan_memory
from rl.hardware.placement import derive_placement
from rl.hardware.presets import PRESETS, PresetConfig

Placement = Literal["colocated", "separate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The use of a cluster's GPUs."""

    gpus: int
    ranks: int
    """Ranks of the learner."""
    replicas: int
    """Replicas of the policy, which are sharded over ranks / replicas each."""
    engines: int
    width: int
    """GPUs of an engine, which are its tensor parallelism."""
    offload: bool
    """True if the learner's states are in host memory."""
    microbatch_tokens: int
    max_running: int
    """Sequences that an engine runs at once at most."""
    cache_tokens: float
    """Tokens that an engine's cache holds."""
    placement: Placement

    @property
    def shards(self) -> int:
        """Ranks of a replica."""
        return self.ranks // self.replicas


def layout_of(size: str, gpus: int, placement: Placement, a: Assumptions) -> Layout | None:
    """Returns the layout that a preset's run would derive; None if it does not fit so many GPUs.

    Args:
        size: A published size.
        gpus: GPUs of the cluster.
        placement: colocated or separate.
        a: Machines.
    """
    preset = PRESETS[size]
    machine = Machine(device_gib=a.device_gib, gpus=a.gpus_per_node, host_gib=a.host_gib)
    nodes = [a.gpus_per_node] * max(1, gpus // a.gpus_per_node)
    config = replace(PresetConfig().of_size(preset), placement=placement)
    # Only as far as a cluster needs it: the preset's choice is for its own, smaller one.
    for offload in (False, True):
        try:
            derived = derive_placement(replace(config, learner=replace(config.learner, offload=offload)), nodes)
        except ValueError:  # too few GPUs
            return None
        chosen, _ = fitted(derived, PUBLISHED[size], machine)
        plan = plan_memory(chosen, PUBLISHED[size], machine, group_size=chosen.group_size)
        if plan.fits:
            learner, rollout = chosen.learner, chosen.rollout
            return Layout(
                gpus=gpus,
                ranks=learner.gpus,
                replicas=learner.replicas or 1,
                engines=rollout.num_engines,
                width=rollout.gpus_per_engine,
                offload=learner.offload,
                microbatch_tokens=learner.microbatch_tokens,
                max_running=rollout.max_running,
                cache_tokens=plan.sequences * rollout.max_model_len,
                placement=placement,
            )
    return None
