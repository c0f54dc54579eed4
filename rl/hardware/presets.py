"""Presets for each published size of Qwen3-VL: machines, assignment of GPUs, and sharding of the policy.

A preset sets what depends on the model's size alone. A recipe sets tasks, rewards and hyper-parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

from rich.console import Console

from policies.model_sizes import PUBLISHED
from rl.config import EvalConfig, LearnerConfig, OptimizerConfig, SmallRecipe, TrainConfig, check_config
from rl.hardware.fitting import fitted
from rl.hardware.memory import Machine, MemoryPlan, memory_table, plan_memory, plan_teacher
from rl.hardware.placement import DerivedOption, derive_placement, derived_options, placement_table
from rollout.config import RolloutConfig

C = TypeVar("C", bound="Sized")

PresetName = Literal["small", "2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B"]
"""`small` is the small policy on this machine's CPU; the others are published sizes."""


@dataclass(frozen=True, kw_only=True)
class PresetConfig(SmallRecipe):
    """Options of a recipe that has presets: `--preset` replaces the defaults that depend on the policy's size."""

    preset: PresetName = "small"
    """small runs on this machine's CPU; the others are Qwen3-VL's sizes, on GPUs."""
    plan: bool = False
    """Prints the assignment of the preset's GPUs and the memory plan, and stops."""
    data_dir: Path | None = None
    """Folder of the preset's datasets, one subfolder for each by its name; default: the hub."""

    def large(self) -> Self:
        """Replaces the small policy's hyper-parameters by those for a published size."""
        return replace(
            self,
            steps=400,
            prompts_per_step=128,
            group_size=16,
            num_minibatches=4,
            reward_workers=8,
            reward_timeout=30.0,
            optimizer=OptimizerConfig(learning_rate=1e-6),
            rollout=RolloutConfig(),
            learner=LearnerConfig(),
            eval=EvalConfig(every=50, num_prompts=512),
        )

    def of_size(self, preset: Preset) -> Self:
        """Returns the config for a preset's size and machines."""
        config = self.large()
        rollout = replace(
            config.rollout,
            max_model_len=20480,  # an image of 2,048 tokens, and a thought of 16,384
            max_tokens=16384,
            max_image_pixels=2048 * 1024,
            gpus_per_engine=preset.gpus_per_engine,
        )
        return replace(config, model=preset.model, placement=preset.placement, learner=preset.learner, rollout=rollout)

    def print_plan(self, console: Console) -> None:
        """Prints the assignment of the preset's GPUs and the memory plan."""
        preset = PRESETS[self.preset]
        _, options, plan = preset_plan(self, self.preset)
        console.print(preset.why, highlight=False)
        if self.placement:
            console.print(placement_table(derived_options(self, preset.gpus)))
        if options:
            console.print(placement_table(options, title="to fit the GPUs"))
        console.print(memory_table(plan, keep_checkpoints=self.keep_checkpoints))
        if teacher := next((size for size in PUBLISHED if f"-{size}-" in str(self.teacher.model)), None):
            console.print(plan_teacher(self.teacher, self.rollout, PUBLISHED[teacher], preset.machine))

    def source(self, hub_name: str) -> str:
        """Returns where to read a dataset of the hub: its hub name, or its folder in `data_dir`."""
        return hub_name if self.data_dir is None else str(self.data_dir / hub_name.rpartition("/")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Machines for a model, and their use."""

    model: str
    """Published checkpoint that RL starts from."""
    nodes: int
    """Machines."""
    gpus_per_node: int = 8
    device_gib: float = 80.0
    """Memory of a GPU, in GiB."""
    placement: Literal["separate", "colocated"] = "colocated"
    gpus_per_engine: int
    offload: bool = False
    """Keeps the learner's states in host memory."""
    why: str
    """Reason for these choices, in a sentence."""

    @property
    def learner(self) -> LearnerConfig:
        """The learner's options."""
        return LearnerConfig(gradient_checkpointing=True, microbatch_tokens=20480, offload=self.offload)

    @property
    def machine(self) -> Machine:
        """Each of the machines."""
        return Machine(device_gib=self.device_gib, gpus=self.gpus_per_node)

    @property
    def gpus(self) -> list[int]:
        """GPUs of each node."""
        return [self.gpus_per_node] * self.nodes


PRESETS: dict[str, Preset] = {
    "2B": Preset(
        model="Qwen/Qwen3-VL-2B-Instruct",
        nodes=1,
        gpus_per_engine=1,
        why="a rank keeps 4 GiB of states: learner and engine share every GPU",
    ),
    "4B": Preset(
        model="Qwen/Qwen3-VL-4B-Instruct",
        nodes=1,
        gpus_per_engine=1,
        why="a rank keeps 8 GiB of states: learner and engine share every GPU",
    ),
    "8B": Preset(
        model="Qwen/Qwen3-VL-8B-Instruct",
        nodes=1,
        gpus_per_engine=1,
        why="a rank keeps 16 GiB of states, and an engine still has 30 GiB of cache",
    ),
    "32B": Preset(
        model="Qwen/Qwen3-VL-32B-Instruct",
        nodes=4,
        gpus_per_engine=4,
        why="over 32 GPUs a rank keeps 16 GiB of states; over 16 it would be 31, and little cache would be left",
    ),
    "30B-A3B": Preset(
        model="Qwen/Qwen3-VL-30B-A3B-Instruct",
        nodes=1,
        offload=True,
        gpus_per_engine=2,
        why="on one machine the states would be 58 GiB of each GPU: they are in host memory, and the engines have the GPUs",
    ),
    "235B-A22B": Preset(
        model="Qwen/Qwen3-VL-235B-A22B-Instruct",
        nodes=8,
        offload=True,
        gpus_per_engine=8,
        why="an engine needs a whole machine, and 55 GiB of each GPU: the states are in host memory",
    ),
}
"""Size → preset. Tests check that each fits GPUs of 80 GiB by the memory plan."""


class Sized(Protocol):
    """Protocol of a config with presets, such as `PresetConfig`."""

    model: str
    preset: PresetName
    plan: bool

    def of_size(self, preset: Preset) -> Self:
        """Returns the config for a preset's size and machines."""

    def print_plan(self, console: Console) -> None:
        """Prints the plan for the preset's machines."""


def with_preset(config: C, name: PresetName) -> C:
    """Returns the config for a preset; unchanged for `small`.

    Raises:
        ValueError: There is no such preset.
    """
    if name == "small":
        return config
    if name not in PRESETS:
        raise ValueError(f"preset must be one of small, {', '.join(PRESETS)}, got {name!r}")
    sized: Any = config.of_size(PRESETS[name])
    chosen: C = replace(sized, preset=name)
    return chosen


def preset_plan(config: TrainConfig, name: PresetName) -> tuple[TrainConfig, list[DerivedOption], MemoryPlan]:
    """Returns the config on the preset's machines, the options that make it fit them, and its memory plan.

    Raises:
        ValueError: The config cannot work.
    """
    preset = PRESETS[name]
    derived = derive_placement(config, preset.gpus) if config.placement else config
    check_config(derived)
    derived, options = fitted(derived, PUBLISHED[name], preset.machine)
    plan = plan_memory(derived, PUBLISHED[name], preset.machine, group_size=derived.group_size)
    return derived, options, plan


def print_plan(config: Sized, console: Console) -> None:
    """Prints the preset's machines and the config's plan for them.

    Raises:
        ValueError: The preset is `small`, which needs no plan, or the config cannot work.
    """
    if config.preset == "small":
        raise ValueError(f"--plan is for GPUs, but preset small runs on the CPU: choose one of {', '.join(PRESETS)}")
    preset = PRESETS[config.preset]
    machines = f"{preset.nodes} × {preset.gpus_per_node} GPUs of {preset.device_gib:g} GiB"
    console.print(f"{config.preset}: {config.model} on {machines}", highlight=False)
    config.print_plan(console)
