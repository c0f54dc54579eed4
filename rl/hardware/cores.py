"""CPU threads of learner and engines, derived from the cores, the models' sizes, and who works at the same time.

On-policy, learner and engines take turns, so each side may have all cores. With max_staleness > 0 they work at once: the learner's
ranks get half of the cores, and the engines the rest. The engines of student and teacher always work at once, and Ray gives an
engine a CPU for each thread: together they claim no more than there are. On GPUs nothing is derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from policies.model_sizes import known_shape
from rl.config import LearnerConfig, TrainConfig
from rl.hardware.placement import DerivedOption, placement_table, with_options
from rollout.cluster import cpus_of_nodes, local_cpus
from rollout.config import RolloutConfig

SMALL = 30_000_000
"""An engine of a model with fewer parameters gets one thread. Measured with 128 sequences on two cores: 3.7M parameters take 1.03 s
with one thread, and 1.0 to 1.1 s with two; 139M parameters are 1.3 times faster with two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """The engines of one model, as far as cores matter."""

    option: str
    """Dotted name of the option for their threads."""
    num: int
    """Engines on a node, at most."""
    threads: int | None
    """Threads of each, as set; None to derive them."""
    on_gpus: bool
    parameters: int | None
    """Parameters of the model; None if they are not known."""

    @property
    def is_derived(self) -> bool:
        """True if their threads are to be derived."""
        return self.threads is None and not self.on_gpus

    @property
    def is_small(self) -> bool:
        """True if a second thread gains nothing; a model of unknown size counts as large."""
        return self.parameters is not None and self.parameters < SMALL

    @property
    def takes_more(self) -> bool:
        """True if they share the cores that the others leave."""
        return self.is_derived and not self.is_small

    @property
    def claim(self) -> int:
        """Cores of a node that they need at least."""
        return self.num * (self.threads or 1)


def with_threads(config: TrainConfig, console: Console, derived: Sequence[DerivedOption] = ()) -> TrainConfig:
    """Returns the config of a run with the threads that are not set, and prints these.

    A new run whose policy cannot be read prints nothing: it is refused next, in one sentence.

    Args:
        config: The run's config, with its placement resolved.
        console: Prints the derived options.
        derived: Options that were derived before, to print with the threads.
    """
    rollout, teacher = config.rollout, config.teacher
    counts_policy = rollout.threads_per_engine is None and not rollout.gpus_per_engine
    counts_teacher = teacher.model is not None and teacher.threads_per_engine is None and not teacher.gpus_per_engine
    parameters = num_parameters(config.model) if counts_policy else None
    options: list[DerivedOption] = []
    if counts_policy or counts_teacher or (config.learner.threads is None and not config.learner.gpus):
        of_teacher = num_parameters(str(teacher.model)) if counts_teacher else None
        options = derive_threads(config, cpus_of_nodes(), parameters=parameters, teacher_parameters=of_teacher)
    if parameters is not None or not counts_policy or config.resume is not None:
        _print([*derived, *options], console)
    return with_options(config, options)


def with_engine_threads(
    rollout: RolloutConfig, model: str, console: Console, derived: Sequence[DerivedOption] = ()
) -> RolloutConfig:
    """Returns the options of engines without a learner, with their threads if these are not set, and prints what is derived."""
    options: list[DerivedOption] = []
    if rollout.threads_per_engine is None and not rollout.gpus_per_engine:
        nodes = cpus_of_nodes()
        options = engine_threads([_engines(rollout, nodes, num_parameters(model))], min(nodes, default=1))
    _print([*derived, *options], console)
    return replace(rollout, threads_per_engine=options[0].value) if options else rollout


def with_learner_threads(
    learner: LearnerConfig, console: Console, derived: Sequence[DerivedOption] = ()
) -> LearnerConfig:
    """Returns the options of a learner without engines, with its threads if these are not set, and prints what is derived."""
    options: list[DerivedOption] = []
    if learner.threads is None and not learner.gpus:
        # One rank runs in this process, several are Ray's.
        cores = local_cpus() if learner.cpu_ranks == 1 else min(cpus_of_nodes(), default=1)
        options = [learner_threads(learner, cores)]
    _print([*derived, *options], console)
    return replace(learner, threads=options[0].value) if options else learner


def derive_threads(
    config: TrainConfig, nodes: Sequence[int], *, parameters: int | None, teacher_parameters: int | None = None
) -> list[DerivedOption]:
    """Returns the threads of a run's learner and engines, those that are set and those on GPUs excepted.

    Args:
        config: The run's config, with its placement resolved.
        nodes: Cores of each node. The smallest decides, as Ray may put all of the learner's ranks on it.
        parameters: Parameters of the policy; None if they are not known.
        teacher_parameters: Parameters of the teacher; None if they are not known, or without one.
    """
    learner, cores = config.learner, min(nodes, default=1)
    engines = [_engines(config.rollout, nodes, parameters)]
    if config.teacher.model is not None:
        scoring = _engines(config.teacher.engine_config(config.rollout), nodes, teacher_parameters)
        engines.append(replace(scoring, option="teacher.threads_per_engine"))
    options, threads, beside = [], learner.threads or 1, 0
    if config.max_staleness:
        beside = max(cores - cores // 2, sum(each.claim for each in engines if each.threads is not None))
    if learner.threads is None and not learner.gpus:
        options.append(learner_threads(learner, cores, beside=beside))
        threads = options[0].value
    if config.max_staleness:
        ranks = math.ceil(learner.gpus / max(1, len(nodes))) or learner.cpu_ranks
        return options + engine_threads(engines, cores, beside=ranks * threads)
    return options + engine_threads(engines, cores)


def learner_threads(learner: LearnerConfig, cores: int, *, beside: int = 0) -> DerivedOption:
    """Returns the threads of a rank on the CPU.

    Args:
        learner: The learner's options.
        cores: Cores of a node.
        beside: Cores of engines that work at the same time.
    """
    left = max(1, cores - beside)
    why = f"{_count(left, 'core')} of {cores} for {_count(learner.cpu_ranks, 'rank')}"
    why += "; engines work at the same time" if beside else ", which no engine needs meanwhile"
    return DerivedOption(name="learner.threads", value=max(1, left // max(1, learner.cpu_ranks)), why=why)


def engine_threads(engines: Sequence[Engines], cores: int, *, beside: int = 0) -> list[DerivedOption]:
    """Returns the threads of engines that work at once, those that are set and those on GPUs excepted.

    Args:
        engines: The engines of each model.
        cores: Cores of a node.
        beside: Cores of a learner that works at the same time.
    """
    left = max(1, cores - beside - sum(each.claim for each in engines if not each.takes_more))
    num = sum(each.num for each in engines if each.takes_more)
    why = f"{_count(left, 'core')} of {cores} for {_count(num, 'engine')}"
    why += "; the learner works at the same time" if beside else ""
    options = []
    for each in engines:
        if each.is_derived and each.is_small:
            small = f"{(each.parameters or 0) / 1e6:.1f}M parameters: a second thread gains nothing"
            options.append(DerivedOption(name=each.option, value=1, why=small))
        elif each.is_derived:
            options.append(DerivedOption(name=each.option, value=max(1, left // max(1, num)), why=why))
    return options


def num_parameters(model: str) -> int | None:
    """Returns the number of a model's parameters by its config.json; None if that cannot be read."""
    shape = known_shape(model)
    return None if shape is None else shape.parameters


def _engines(rollout: RolloutConfig, nodes: Sequence[int], parameters: int | None) -> Engines:
    return Engines(
        option="rollout.threads_per_engine",
        num=math.ceil(rollout.num_engines / max(1, len(nodes))),
        threads=rollout.threads_per_engine,
        on_gpus=bool(rollout.gpus_per_engine),
        parameters=parameters,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _print(options: Sequence[DerivedOption], console: Console) -> None:
    if options:
        console.print(placement_table(options, title="Derived from this machine"))
