"""The teacher of a run: whether it can be one, what its engines are like, and their start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from policies.loading import load_processor, supported_model, vision_token_ids
from rl.config import TrainConfig
from rl.hardware.placement import teacher_rollout
from rollout.cluster import cluster_nodes, require_room_for_both
from rollout.pool.teacher import Teacher

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def require_same_vocabulary(processor: ProcessorMixin, teacher: str) -> None:
    """Makes sure that a token means the same to student and teacher.

    Args:
        processor: The student's.
        teacher: A folder or hub name.

    Raises:
        ValueError: There is no such model; or its tokens differ: says how many, and names one.
    """
    ours = processor.tokenizer.get_vocab()
    theirs = load_processor(supported_model(teacher)).tokenizer.get_vocab()
    different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if different:
        first = different[0]
        raise ValueError(
            f"teacher.model = {teacher} has another vocabulary than the student: {len(different)} tokens differ, the first is "
            f"{first!r} ({_named(theirs.get(first))} there, {_named(ours.get(first))} here): a teacher's log-probabilities are of "
            "the student's tokens; take one of the same family"
        )


def _named(token_id: int | None) -> str:
    return "no token" if token_id is None else f"id {token_id}"


def start_teacher(config: TrainConfig, student: str | Path, processor: ProcessorMixin) -> Teacher | None:
    """Starts the teacher's engines; None if the config names no teacher.

    Args:
        config: The run's choices.
        student: Where the student's processor is.
        processor: That one.

    Raises:
        ValueError: If Ray has no room for them.
        RuntimeError: If an engine does not start; the message is its own.
    """
    if config.teacher.model is None:
        return None
    engines = teacher_rollout(config)
    learner_gpus = 0 if config.rollout.shares_gpus else config.learner.gpus
    require_room_for_both(cluster_nodes(), config.rollout, engines, learner_gpus=learner_gpus)
    banned = vision_token_ids(processor)
    return Teacher(config.teacher.model, student, engines, processor=processor, banned_ids=banned)
