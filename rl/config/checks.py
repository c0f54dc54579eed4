"""Checks of options: the bounds in their annotations, and choices that exclude each other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_origin

from annotated_types import Ge, Gt

from rollout.config import ENGINE_RANKS, RESUMABLE, RolloutConfig

if TYPE_CHECKING:
    from rl.config.learning import CorrectionConfig, ObjectiveOptions, TeacherConfig, UpdateOptions
    from rl.config.policy import PolicyOptions
    from rl.config.train import BatchOptions

OBJECTIVE_NAMES = (
    "sapo",
    "sapo_one_sided",
    "sapo_sequence",
    "sapo_log",
    "sapo_erf",
    "sapo_arctan",
    "sapo_softsign",
    "sspo",
    "grpo",
    "gspo",
    "dapo",
    "dr_grpo",
    "cispo",
    "vespo",
    "policy_gradient",
)
"""The keys of `rl.objectives.OBJECTIVES`, repeated here to check a name without importing torch."""


def check_bounds(config: Any) -> None:
    """Checks each option against the bound in its annotation; None has no bound.

    Raises:
        ValueError: An option is out of bounds. Names it and its value.
    """
    for name, value, marks in annotated_options(config):
        for mark in marks if value is not None else ():
            if isinstance(mark, Gt) and not value > mark.gt:
                raise ValueError(f"{name} must be > {mark.gt}, got {value}")
            if isinstance(mark, Ge) and not value >= mark.ge:
                raise ValueError(f"{name} must be >= {mark.ge}, got {value}")


def resumable_options(config: Any) -> set[str]:
    """Dotted names of the options, and of the sections, that may differ between a run and its resume."""
    return {name for name, _, marks in annotated_options(config) if RESUMABLE in marks}


def annotated_options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yields dotted name, value and annotation marks of each option; a section comes before its options."""
    marks = _field_marks(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        yield prefix + field.name, value, marks[field.name]
        if is_dataclass(value):
            yield from annotated_options(value, f"{prefix}{field.name}.")


def _field_marks(config_type: type) -> dict[str, tuple[Any, ...]]:
    """Marks of each field over all classes that declare it: a new default in a subclass keeps bound and marker."""
    marks: dict[str, tuple[Any, ...]] = {field.name: () for field in fields(config_type)}
    for cls in config_type.__mro__:
        for name, annotation in inspect.get_annotations(cls, eval_str=True).items():
            if get_origin(annotation) is Annotated and name in marks:
                marks[name] += annotation.__metadata__
    return marks


def check_policy(options: PolicyOptions) -> None:
    """Checks the learner's and LoRA's choices against each other.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    learner, lora = options.learner, options.lora
    if learner.offload and not learner.gpus:
        raise ValueError("learner.offload = True has no effect with learner.gpus = 0: leave it out")
    if learner.num_ranks % (learner.replicas or 1):
        raise ValueError(
            f"learner.replicas = {learner.replicas} does not divide the learner's {learner.num_ranks} ranks: use a divisor"
        )
    if lora.rank and not lora.parts:
        raise ValueError(f"lora.rank = {lora.rank} with no lora.parts trains nothing: name language, vision or experts")
    if lora.rank and "vision" in lora.parts and options.optimizer.vision_learning_rate == 0:
        raise ValueError(
            "lora.parts has vision, but optimizer.vision_learning_rate = 0 freezes the tower: leave out one of the two"
        )
    if lora.sync == "adapter" and (not lora.rank or lora.parts != ("language",)):
        raise ValueError(
            f"lora.sync = adapter is for adapters of the language model, got lora.rank = {lora.rank}, lora.parts = "
            f"{' '.join(lora.parts)}: use lora.sync merged, or lora.parts language with a rank"
        )
    if lora.sync == "adapter" and lora.rank > max(ENGINE_RANKS):
        raise ValueError(
            f"lora.rank = {lora.rank} is more than vLLM's {max(ENGINE_RANKS)}: lower it or use lora.sync merged"
        )


def check_lengths(rollout: RolloutConfig) -> None:
    """Checks that a response leaves room for a prompt.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    if rollout.max_tokens >= rollout.max_model_len:
        raise ValueError(
            f"rollout.max_tokens = {rollout.max_tokens} leaves no room for a prompt in "
            f"rollout.max_model_len = {rollout.max_model_len}: raise max_model_len or lower max_tokens"
        )


def check_objective_name(options: ObjectiveOptions) -> None:
    """Checks the objective's name; a FILE.py:FUNCTION is loaded later.

    Raises:
        ValueError: Lists the known names.
    """
    if ":" not in options.objective and options.objective not in OBJECTIVE_NAMES:
        known = ", ".join(OBJECTIVE_NAMES)
        raise ValueError(f"objective must be one of {known}, or FILE.py:FUNCTION, got {options.objective!r}")


def check_correction(correction: CorrectionConfig) -> None:
    """Checks that the bands of masked importance sampling contain 1, and that the sequence mask reads its options.

    Raises:
        ValueError: Names the option, its value and an example.
    """
    if correction.off_policy_reference != "learner" and not correction.off_policy_threshold:
        raise ValueError(
            f"correction.off_policy_reference = {correction.off_policy_reference} has no effect with "
            "correction.off_policy_threshold = 0: set the threshold, for example 0.5"
        )
    for name in ("token_band", "sequence_band"):
        band = getattr(correction, name)
        if band is not None and not 0 <= band[0] < 1 < band[1]:
            raise ValueError(f"correction.{name} must be a band around 1, such as 0.5 2.0, got {band[0]} {band[1]}")


def check_groups(batch: BatchOptions, update: UpdateOptions) -> None:
    """Checks group size and minibatches.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    teacher = update.teacher
    if batch.group_size < 2 and (teacher.model is None or teacher.reward_weight):
        raise ValueError(
            f"group_size must be >= 2, got {batch.group_size}: an advantage compares a completion with its siblings"
        )
    if update.num_minibatches > batch.prompts_per_step:
        raise ValueError(
            f"num_minibatches = {update.num_minibatches} exceeds prompts_per_step = {batch.prompts_per_step}: "
            "each minibatch uses whole groups"
        )


def check_teacher(teacher: TeacherConfig, student: RolloutConfig, refill_prompts: int) -> None:
    """Checks a teacher's options against the student's engines.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    if teacher.model is None:
        changed = [f.name for f in fields(teacher) if getattr(teacher, f.name) != f.default]
        if changed:
            named = f"teacher.{changed[0]} = {getattr(teacher, changed[0])}"
            raise ValueError(f"{named} without a teacher: name one with teacher.model, or leave it out")
        return
    if bool(teacher.gpus_per_engine) != bool(student.gpus_per_engine):
        raise ValueError(
            f"teacher.gpus_per_engine = {teacher.gpus_per_engine} with rollout.gpus_per_engine = "
            f"{student.gpus_per_engine}: vLLM is installed for GPUs or for CPUs; give both engines GPUs, or none"
        )
    if refill_prompts and not teacher.reward_weight:
        raise ValueError(
            f"refill_prompts = {refill_prompts} replaces groups whose rewards are equal, but a teacher without rewards "
            "trains on these as well as on others: leave it out, or set teacher.reward_weight"
        )
