"""Assignment of GPUs to learner and engines, derived from `placement`, the GPUs here, and the GPUs per engine.

separate (disaggregated): learner and engines have different GPUs, and weights go by NCCL. The learner gets a quarter of the GPUs,
since generation is 60 to 80 % of a step, and those that make no whole engine.
colocated (hybrid engine): every GPU has a rank of the learner and a share of an engine, and weights go by CUDA IPC. Engines sleep
while the learner trains, and wake for generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table

from rl.config import TrainConfig, with_option
from rollout.cluster import gpus_of_nodes, most_engines
from rollout.config import RolloutConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

LEARNER_PART = 4
"""Separate placement: the learner gets one GPU in so many."""
SHARED_MEMORY = 0.6
"""rollout.gpu_memory_utilization of an engine on a GPU that also holds the learner's weights and optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedOption:
    """An option that is derived from the machine, and not set."""

    name: str
    """Dotted name."""
    value: Any
    why: str


def resolve_placement(config: TrainConfig, console: Console | None = None) -> TrainConfig:
    """Returns the config with the options that its placement derives from the GPUs here; unchanged without a placement.

    Args:
        config: The run's config.
        console: Prints the derived options; None prints nothing.
    """
    if config.placement is None:
        return config
    gpus = gpus_of_nodes()
    if console is not None:
        console.print(placement_table(derived_options(config, gpus)))
    return derive_placement(config, gpus)


def derive_placement(config: TrainConfig, gpus: Sequence[int]) -> TrainConfig:
    """Returns the config with the options that its placement derives from given GPUs.

    Args:
        config: The run's config, with a placement.
        gpus: GPUs of each node.

    Raises:
        ValueError: There are too few GPUs, or an option contradicts the placement.
    """
    return with_options(config, derived_options(config, gpus))


def with_options(config: C, options: Sequence[DerivedOption]) -> C:
    """Returns a config with derived options of its sections."""
    for option in options:
        config = with_option(config, option.name, option.value)
    return config


def possible_placements(gpus: Sequence[int]) -> list[str]:
    """Describes what each placement derives from given GPUs, by the defaults of all other options.

    Args:
        gpus: GPUs of each node.
    """
    found = []
    for placement in ("separate", "colocated"):
        try:
            config = derive_placement(TrainConfig(model="", placement=placement), gpus)
            found.append(f"{placement}: learner.gpus {config.learner.gpus}, {config.rollout.num_engines} engines")
        except ValueError:
            found.append(f"{placement}: needs more GPUs")
    return found


def derived_options(config: TrainConfig, gpus: Sequence[int]) -> list[DerivedOption]:
    """Returns the options that a placement derives.

    Args:
        config: The run's config, with a placement.
        gpus: GPUs of each node.

    Raises:
        ValueError: As `derive_placement`.
    """
    gpus = beside_teacher(config, gpus)
    total = sum(gpus)
    if not total:
        raise ValueError(
            f"placement = {config.placement} needs GPUs, but there are none here: leave out the placement, or the preset that "
            "sets it; learner and engines then run on CPUs"
        )
    width = config.rollout.gpus_per_engine or 1
    if width > max(gpus):
        raise ValueError(
            f"rollout.gpus_per_engine = {width}, but no node has more than {max(gpus)} GPUs: "
            "lower it, since an engine cannot span nodes"
        )
    derived = (_separate if config.placement == "separate" else _colocated)(config, gpus, width)
    for option in derived:
        _refuse_another(config, option)
    return derived


def beside_teacher(config: TrainConfig, gpus: Sequence[int]) -> list[int]:
    """Returns the GPUs of each node without those of the teacher's engines, which fill the last nodes first.

    Raises:
        ValueError: There is no room for the teacher's engines.
    """
    left, width = list(gpus), config.teacher.gpus_per_engine
    for number in range(config.teacher.num_engines if config.teacher.model is not None and width else 0):
        node = next((i for i in reversed(range(len(left))) if left[i] >= width), None)
        if node is None:
            raise ValueError(
                f"teacher.num_engines = {config.teacher.num_engines} with teacher.gpus_per_engine = {width}: the nodes, with "
                f"{', '.join(map(str, gpus))} GPUs, have room for {number}: lower one of the two options"
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
            f"rollout.gpus_per_engine = {width}: use placement colocated, or lower one of the two options"
        )
    left = total - engines * width
    learner_why = f"of {total}: one in {LEARNER_PART}, and those left over by whole engines"
    if config.learner.gpus:
        left, learner_why = learner, f"as set, of {total}" + (f"; {left - learner} idle" if left > learner else "")
    transfer = config.rollout.weight_transfer
    by_host = transfer == "shared_memory"
    return [
        DerivedOption(name="learner.gpus", value=left, why=learner_why),
        DerivedOption(name="rollout.num_engines", value=engines, why="all other GPUs generate, most of a step's work"),
        DerivedOption(name="rollout.gpus_per_engine", value=width, why=_width_why(config)),
        DerivedOption(
            name="rollout.weight_transfer",
            value="shared_memory" if by_host else "nccl",
            why="as set: slower, through host memory" if by_host else "from GPU to GPU",
        ),
    ]


def _colocated(config: TrainConfig, gpus: Sequence[int], width: int) -> list[DerivedOption]:
    engines = sum(count // width for count in gpus)
    used, total = engines * width, sum(gpus)
    idle = f"; {total - used} are left over by whole engines and stay idle" if used < total else ""
    utilization = config.rollout.gpu_memory_utilization
    is_set = utilization != _default(RolloutConfig, "gpu_memory_utilization")
    share, share_why = SHARED_MEMORY, "the rest is for the learner's weights and optimizer"
    if config.learner.offload:
        share, share_why = utilization, "the learner's weights and optimizer are in host memory"
    return [
        DerivedOption(name="learner.gpus", value=used, why=f"a rank on each of {total}{idle}"),
        DerivedOption(
            name="rollout.num_engines", value=engines, why="on the same GPUs; asleep while the learner trains"
        ),
        DerivedOption(name="rollout.gpus_per_engine", value=width, why=_width_why(config)),
        DerivedOption(name="rollout.weight_transfer", value="ipc", why="engine and learner share each GPU's memory"),
        DerivedOption(
            name="rollout.gpu_memory_utilization",
            value=utilization if is_set else share,
            why="as set" if is_set else share_why,
        ),
    ]


def _width_why(config: TrainConfig) -> str:
    return "as set: tensor parallel over them" if config.rollout.gpus_per_engine > 1 else "no tensor parallelism"


def _refuse_another(config: TrainConfig, option: DerivedOption) -> None:
    """Refuses an option that is set to another value than the derived one."""
    value = attrgetter(option.name)(config)
    part, name = option.name.split(".")
    if value not in (option.value, _default(type(getattr(config, part)), name)):
        raise ValueError(
            f"placement = {config.placement} derives {option.name} = {option.value}, but {option.name} = {value}: "
            "leave out one of the two"
        )


def _default(config_class: type[Any], name: str) -> Any:
    (default,) = (field.default for field in fields(config_class) if field.name == name)
    assert default is not MISSING
    return default


def placement_table(derived: Sequence[DerivedOption], *, title: str = "placement") -> Table:
    table = Table("derived", "value", "why", title=title, title_justify="left")
    for option in derived:
        table.add_row(option.name, str(option.value), option.why)
    return table
