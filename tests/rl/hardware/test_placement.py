"""What a placement derives from the GPUs that there are, what it refuses, and how it says so."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

import rl.hardware.placement
from rl.config import LearnerConfig, TeacherConfig, TrainConfig, check_config
from rl.hardware.placement import derive_placement, derived_options, placement_table, resolve_placement
from rollout.config import RolloutConfig


def config(placement: str | None, *, learner_gpus: int = 0, **rollout) -> TrainConfig:
    return TrainConfig(
        model="m", placement=placement, learner=LearnerConfig(gpus=learner_gpus), rollout=RolloutConfig(**rollout)
    )


def derived(placement: str, gpus: list[int], **options) -> tuple[int, int, int, str]:
    """GPUs of the learner, engines, GPUs of each, and the way of the weights."""
    made = derive_placement(config(placement, **options), gpus)
    check_config(made)
    return made.learner.gpus, made.rollout.num_engines, made.rollout.gpus_per_engine, made.rollout.weight_transfer


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        ([2], {}, (1, 1, 1, "nccl")),
        ([8], {}, (2, 6, 1, "nccl")),  # one in four learns
        ([8, 8], {}, (4, 12, 1, "nccl")),
        ([8], {"gpus_per_engine": 2}, (2, 3, 2, "nccl")),
        ([8], {"gpus_per_engine": 4}, (4, 1, 4, "nccl")),  # two would make no engine: the learner gets them
        ([8], {"learner_gpus": 4}, (4, 4, 1, "nccl")),
        ([8], {"learner_gpus": 3, "gpus_per_engine": 2}, (3, 2, 2, "nccl")),  # one is idle
        ([3, 3], {"gpus_per_engine": 2}, (2, 2, 2, "nccl")),  # an engine is on one node: one is left over on each
        ([8], {"weight_transfer": "shared_memory"}, (2, 6, 1, "shared_memory")),
    ],
)
def test_separate_gives_the_learner_a_quarter_and_what_makes_no_whole_engine(gpus, options, expected) -> None:
    assert derived("separate", gpus, **options) == expected


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        ([1], {}, (1, 1, 1, "ipc")),
        ([8], {}, (8, 8, 1, "ipc")),
        ([8, 8], {"gpus_per_engine": 4}, (16, 4, 4, "ipc")),
        ([7], {"gpus_per_engine": 2}, (6, 3, 2, "ipc")),  # one is idle
    ],
)
def test_colocated_puts_a_rank_on_every_gpu_and_engines_over_the_same(gpus, options, expected) -> None:
    assert derived("colocated", gpus, **options) == expected


def test_colocated_engines_leave_memory_to_the_learner_unless_told_otherwise() -> None:
    assert derive_placement(config("colocated"), [8]).rollout.gpu_memory_utilization == 0.6
    asked = config("colocated", gpu_memory_utilization=0.4)
    assert derive_placement(asked, [8]).rollout.gpu_memory_utilization == 0.4
    assert derive_placement(config("separate"), [8]).rollout.gpu_memory_utilization == 0.85


@pytest.mark.parametrize(
    ("placement", "gpus", "options", "told"),
    [
        ("separate", [], {}, "placement = separate needs GPUs, but there are none here"),
        ("colocated", [0], {}, "placement = colocated needs GPUs, but there are none here"),
        ("separate", [1], {}, "1 GPUs are too few for learner.gpus = 1 and an engine of rollout.gpus_per_engine = 1"),
        ("separate", [4, 4], {"gpus_per_engine": 8}, "gpus_per_engine = 8, but no node has more than 4 GPUs"),
        ("colocated", [8], {"learner_gpus": 4}, "colocated derives learner.gpus = 8, but learner.gpus = 4"),
        ("separate", [8], {"num_engines": 3}, "separate derives rollout.num_engines = 6, but rollout.num_engines = 3"),
        ("separate", [8], {"weight_transfer": "ipc"}, "derives rollout.weight_transfer = nccl, but .* = ipc"),
        ("colocated", [8], {"weight_transfer": "nccl"}, "derives rollout.weight_transfer = ipc, but .* = nccl"),
    ],
)
def test_what_cannot_be_or_is_said_twice_is_refused_with_both_values(placement, gpus, options, told) -> None:
    with pytest.raises(ValueError, match=told):
        derive_placement(config(placement, **options), gpus)


def test_engines_that_sleep_while_the_learner_trains_cannot_generate_ahead() -> None:
    made = derive_placement(config("colocated"), [8])
    with pytest.raises(ValueError, match="max_staleness = 1 lets engines generate while the learner trains"):
        check_config(replace(made, max_staleness=1))


def test_without_a_placement_the_options_stand_as_they_are() -> None:
    asked = config(None)
    assert resolve_placement(asked) is asked


def test_what_is_derived_is_printed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.hardware.placement, "gpus_of_nodes", lambda: [8])
    console = Console(record=True, width=120, file=io.StringIO())
    made = resolve_placement(config("separate"), console)
    lines = console.export_text().splitlines()
    for choice in derived_options(config("separate"), [8]):
        assert any(choice.name in line and str(choice.value) in line and choice.why in line for line in lines)
    assert (made.learner.gpus, made.rollout.num_engines) == (2, 6)
    assert placement_table(derived_options(config("separate"), [8])).row_count == 4
    assert resolve_placement(made) == made, "what has been derived is derived again, as a resume does"


@pytest.mark.parametrize(
    ("gpus", "placement", "expected"),
    [
        ([8], "separate", (1, 3)),  # 4 are the teacher's; of the others one learns
        ([8], "colocated", (4, 4)),
        ([8, 4], "colocated", (8, 8)),  # the teacher is on the last node
        ([8, 3], "colocated", (7, 7)),  # which has no room for it here
    ],
)
def test_a_teacher_has_gpus_of_its_own(gpus: list[int], placement: str, expected: tuple[int, int]) -> None:
    asked = replace(config(placement), teacher=TeacherConfig(model="large", gpus_per_engine=4))
    made = derive_placement(asked, gpus)
    assert (made.learner.gpus, made.rollout.num_engines) == expected


def test_a_teacher_that_no_node_has_room_for_is_refused_with_what_there_is() -> None:
    asked = replace(config("colocated"), teacher=TeacherConfig(model="large", num_engines=3, gpus_per_engine=4))
    with pytest.raises(
        ValueError, match=r"teacher.num_engines = 3 with .*per_engine = 4: the nodes, with 8, 2 GPUs, have room for 2"
    ):
        derive_placement(asked, [8, 2])
