"""Which GPUs learn and which generate: derived from `placement`, what the machine has, and how many GPUs an engine takes.

separate: learner and engines have GPUs of their own. The learner takes a quarter, for generation is 60 to 80 % of a step, and
what is left over when the engines have theirs; weights go by NCCL.
colocated: a rank of the learner on every GPU, and engines over the same ones, which sleep while the learner trains and wake for
generation; weights go by CUDA IPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from operator import attrgetter
from typing import Any

from rich.console import Console
from rich.table import Table

from rl.config import TrainConfig
from rollout.cluster import gpus_of_nodes, most_engines
from rollout.config import RolloutConfig

LEARNER_PART = 4
"""Separate placement: the learner takes one GPU in so many."""
SHARED_MEMORY = 0.6
"""Share of a GPU that an engine takes where the learner's weights and optimizer stay on it: rollout.gpu_memory_utilization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedOption:
    """One derived option: its dotted name, its value, and why it has it."""

    option: str
    value: Any
    why: str


def resolve_placement(config: TrainConfig, console: Console | None = None) -> TrainConfig:
    """The config with what `placement` leaves open, derived from the GPUs that there are; without a placement as it is.

    Args:
        config: The run's choices.
        console: Where to print what is derived; None prints nothing.
    """
    if config.placement is None:
        return config
    gpus = gpus_of_nodes()
    if console is not None:
        console.print(placement_table(derived_options(config, gpus)))
    return derive_placement(config, gpus)


def derive_placement(config: TrainConfig, gpus: Sequence[int]) -> TrainConfig:
    """The config with all that its placement says.

    Args:
        config: The run's choices, with a placement.
        gpus: GPUs of each node.

    Raises:
        ValueError: If there are too few GPUs, or an option says otherwise.
    """
    learner: dict[str, Any] = {}
    rollout: dict[str, Any] = {}
    for choice in derived_options(config, gpus):
        part, name = choice.option.split(".")
        (learner if part == "learner" else rollout)[name] = choice.value
    return replace(config, learner=replace(config.learner, **learner), rollout=replace(config.rollout, **rollout))


def derived_options(config: TrainConfig, gpus: Sequence[int]) -> list[DerivedOption]:
    """What a placement says, option by option.

    Args:
        config: The run's choices, with a placement.
        gpus: GPUs of each node.

    Raises:
        ValueError: As `derive_placement`.
    """
    gpus = beside_teacher(config, gpus)
    total = sum(gpus)
    if not total:
        raise ValueError(
            f"placement = {config.placement} needs GPUs, and there are none here: leave it out, or the preset that sets it; "
            "learner and engines run on CPUs then"
        )
    width = config.rollout.gpus_per_engine or 1
    if width > max(gpus):
        raise ValueError(
            f"rollout.gpus_per_engine = {width}, but no node has more than {max(gpus)} GPUs: "
            "an engine is on one node; lower it"
        )
    derived = (_separate if config.placement == "separate" else _colocated)(config, gpus, width)
    for choice in derived:
        _refuse_another(config, choice)
    return derived


def beside_teacher(config: TrainConfig, gpus: Sequence[int]) -> list[int]:
    """GPUs of each node that the teacher's engines leave; they have their own, each engine on one node, on the last nodes first.

    Raises:
        ValueError: If there is no room for them.
    """
    left, width = list(gpus), config.teacher.gpus_per_engine
    for number in range(config.teacher.num_engines if config.teacher.model is not None and width else 0):
        node = next((i for i in reversed(range(len(left))) if left[i] >= width), None)
        if node is None:
            raise ValueError(
                f"teacher.num_engines = {config.teacher.num_engines} with teacher.gpus_per_engine = {width}: the nodes, with "
                f"{', '.join(map(str, gpus))} GPUs, have room for {number}: lower one of the two"
            )
        left[node] -= width
    return left


def _separate(config: TrainConfig, gpus: Sequence[int], width: int) -> list[DerivedOption]:
    total = sum(gpus)
    learner = config.learner.gpus or max(1, total // LEARNER_PART)
    engines = most_engines([count // width for count in gpus], [count % width for count in gpus], width, learner)
    if engines < 1:
        raise ValueError(
            f"placement = separate: {total} GPUs are too few for learner.gpus = {learner} and an engine of "
            f"rollout.gpus_per_engine = {width}: use placement colocated, or lower one of the two"
        )
    left = total - engines * width
    learner_why = f"of {total}: one in {LEARNER_PART}, and those that make no whole engine"
    if config.learner.gpus:
        left, learner_why = learner, f"as asked, of {total}" + (f"; {left - learner} idle" if left > learner else "")
    transfer = config.rollout.weight_transfer
    by_host = transfer == "shared_memory"
    return [
        DerivedOption(option="learner.gpus", value=left, why=learner_why),
        DerivedOption(
            option="rollout.num_engines", value=engines, why="all other GPUs generate, most of a step's work"
        ),
        DerivedOption(option="rollout.gpus_per_engine", value=width, why=_width_why(config)),
        DerivedOption(
            option="rollout.weight_transfer",
            value="shared_memory" if by_host else "nccl",
            why="as asked: slower, but an engine that fails is replaced" if by_host else "from GPU to GPU",
        ),
    ]


def _colocated(config: TrainConfig, gpus: Sequence[int], width: int) -> list[DerivedOption]:
    engines = sum(count // width for count in gpus)
    used, total = engines * width, sum(gpus)
    idle = f"; {total - used} make no whole engine and stay idle" if used < total else ""
    utilization = config.rollout.gpu_memory_utilization
    is_asked = utilization != _default(RolloutConfig, "gpu_memory_utilization")
    share, share_why = SHARED_MEMORY, "the rest is for the learner's weights and optimizer"
    if config.learner.offload:
        share, share_why = utilization, "the learner's weights and optimizer are in host memory"
    return [
        DerivedOption(option="learner.gpus", value=used, why=f"a rank on each of {total}{idle}"),
        DerivedOption(
            option="rollout.num_engines", value=engines, why="on the same GPUs; asleep while the learner trains"
        ),
        DerivedOption(option="rollout.gpus_per_engine", value=width, why=_width_why(config)),
        DerivedOption(option="rollout.weight_transfer", value="ipc", why="engine and learner share each GPU's memory"),
        DerivedOption(
            option="rollout.gpu_memory_utilization",
            value=utilization if is_asked else share,
            why="as asked" if is_asked else share_why,
        ),
    ]


def _width_why(config: TrainConfig) -> str:
    return "as asked: tensor parallel over them" if config.rollout.gpus_per_engine > 1 else "no tensor parallelism"


def _refuse_another(config: TrainConfig, choice: DerivedOption) -> None:
    """An option that is neither at its default nor what the placement makes of it."""
    asked = attrgetter(choice.option)(config)
    part, name = choice.option.split(".")
    if asked not in (choice.value, _default(type(getattr(config, part)), name)):
        raise ValueError(
            f"placement = {config.placement} makes {choice.option} {choice.value}, but {choice.option} = {asked}: "
            "leave one of the two out"
        )


def _default(of: type[Any], name: str) -> Any:
    (default,) = (field.default for field in fields(of) if field.name == name)
    assert default is not MISSING
    return default


def placement_table(derived: Sequence[DerivedOption]) -> Table:
    """One row per derived option."""
    table = Table("derived", "value", "why", title="placement", title_justify="left")
    for choice in derived:
        table.add_row(choice.option, str(choice.value), choice.why)
    return table
