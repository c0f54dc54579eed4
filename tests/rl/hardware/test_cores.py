"""CPU threads that are derived for learner and engines, and how they are printed."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl.config import LearnerConfig, TeacherConfig, TrainConfig
from rl.hardware import cores
from rl.hardware.cores import (
    SMALL,
    derive_threads,
    num_parameters,
    with_engine_threads,
    with_learner_threads,
    with_threads,
)
from rl.preflight import prepare
from rollout.cluster import local_cpus
from rollout.config import RolloutConfig

LARGE, TINY = 139_000_000, 3_700_000


def config(
    *, ranks: int = 1, engines: int = 1, staleness: int = 0, learner: Any = None, rollout: Any = None, **options: Any
) -> TrainConfig:
    return TrainConfig(
        model="m",
        max_staleness=staleness,
        learner=LearnerConfig(**{"cpu_ranks": ranks} | (learner or {})),
        rollout=RolloutConfig(**{"num_engines": engines} | (rollout or {})),
        **options,
    )


def derived(made: TrainConfig, *nodes: int, parameters: int | None = LARGE, **teacher: Any) -> dict[str, int]:
    """Threads of learner, engines and the teacher's, by the first letter of the option."""
    options = derive_threads(made, nodes, parameters=parameters, **teacher)
    return {option.name[0]: option.value for option in options}


@pytest.mark.parametrize(
    ("num_cores", "ranks", "engines", "learner", "engine"),
    [
        (2, 1, 1, 2, 2),
        (2, 1, 2, 2, 1),
        (2, 2, 1, 1, 2),
        (8, 1, 1, 8, 8),
        (8, 2, 2, 4, 4),
        (8, 1, 3, 8, 2),  # two are left over: an engine is no faster than the slowest
        (64, 2, 1, 32, 64),
        (1, 2, 2, 1, 1),  # never none
    ],
)
def test_on_policy_each_side_has_all_cores(num_cores: int, ranks: int, engines: int, learner: int, engine: int) -> None:
    assert derived(config(ranks=ranks, engines=engines), num_cores) == {"l": learner, "r": engine}


@pytest.mark.parametrize(
    ("num_cores", "ranks", "engines", "learner", "engine"),
    [
        (2, 1, 1, 1, 1),
        (2, 1, 2, 1, 1),
        (8, 1, 1, 4, 4),
        (8, 2, 2, 2, 2),
        (8, 3, 1, 1, 5),  # three ranks of one thread leave five
        (3, 1, 1, 1, 2),
        (64, 1, 2, 32, 16),
        (64, 2, 1, 16, 32),
    ],
)
def test_off_policy_the_ranks_have_half_and_the_engines_the_rest(
    num_cores: int, ranks: int, engines: int, learner: int, engine: int
) -> None:
    assert derived(config(ranks=ranks, engines=engines, staleness=1), num_cores) == {"l": learner, "r": engine}


def test_an_engine_of_a_small_policy_has_one_thread_and_one_of_unknown_size_counts_as_large() -> None:
    assert derived(config(), 8, parameters=TINY) == {"l": 8, "r": 1}
    assert derived(config(staleness=1), 64, parameters=TINY) == {"l": 32, "r": 1}
    assert derived(config(), 8, parameters=SMALL - 1)["r"] == 1
    assert derived(config(), 8, parameters=SMALL)["r"] == 8
    assert derived(config(), 8, parameters=None)["r"] == 8


def test_what_is_set_stays_and_the_other_side_has_what_is_left() -> None:
    assert derived(config(learner={"threads": 3}), 8) == {"r": 8}
    assert derived(config(learner={"threads": 3}, staleness=1), 8) == {"r": 5}
    assert derived(config(rollout={"threads_per_engine": 2}), 8) == {"l": 8}
    assert derived(config(rollout={"threads_per_engine": 2}, staleness=1), 8) == {"l": 4}
    assert derived(config(rollout={"threads_per_engine": 3}, engines=2, staleness=1), 8) == {"l": 2}
    assert derived(config(rollout={"threads_per_engine": 1}, learner={"threads": 1}), 8) == {}


def test_on_gpus_nothing_is_derived() -> None:
    on_gpus = {"learner": {"gpus": 2}, "rollout": {"gpus_per_engine": 1}}
    assert derived(config(**on_gpus), 64) == {}
    assert derived(config(learner={"gpus": 2}), 64) == {"r": 64}
    assert derived(config(learner={"gpus": 2}, staleness=1), 64) == {"r": 62}  # each rank's process has a core
    assert derived(config(rollout={"gpus_per_engine": 1}), 64) == {"l": 64}


def test_the_engines_of_student_and_teacher_claim_no_more_cores_than_there_are() -> None:
    teacher = TeacherConfig(model="t")
    both = config(engines=2, teacher=teacher)
    assert derived(both, 8, teacher_parameters=LARGE) == {"l": 8, "r": 2, "t": 2}  # 8 over 3
    assert derived(both, 8, parameters=TINY, teacher_parameters=LARGE) == {"l": 8, "r": 1, "t": 6}
    assert derived(both, 8, parameters=TINY, teacher_parameters=TINY) == {"l": 8, "r": 1, "t": 1}
    assert derived(replace(both, max_staleness=1), 8, teacher_parameters=None) == {"l": 4, "r": 1, "t": 1}
    set_by_hand = replace(both, teacher=replace(teacher, threads_per_engine=4))
    assert derived(set_by_hand, 8) == {"l": 8, "r": 2}  # 4 over 2
    on_gpus = replace(both, teacher=replace(teacher, gpus_per_engine=1))
    assert derived(on_gpus, 8) == {"l": 8, "r": 3}  # Ray gives the teacher's engine one: 7 over 2


def test_on_a_cluster_engines_are_spread_and_the_smallest_node_decides() -> None:
    assert derived(config(engines=4, ranks=2), 8, 16) == {"l": 4, "r": 4}
    assert derived(config(engines=3), 8, 8) == {"l": 8, "r": 4}
    assert derived(config(engines=2, staleness=1), 8, 8) == {"l": 4, "r": 4}


def test_values_that_are_refused_later_are_no_obstacle() -> None:
    assert derived(config(ranks=0, engines=0), 8) == {"l": 8, "r": 8}


def console() -> Console:
    return Console(file=StringIO(), width=200)


def printed(where: Console) -> str:
    return where.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def on(monkeypatch: pytest.MonkeyPatch, *nodes: int) -> None:
    monkeypatch.setattr(cores, "cpus_of_nodes", lambda: list(nodes))
    monkeypatch.setattr(cores, "local_cpus", lambda: nodes[0])


def test_a_run_prints_its_threads_with_their_reasons(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dense_policy: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    on(monkeypatch, 8)
    made = prepare(replace(config(ranks=2, staleness=1), model=str(dense_policy)))
    assert (made.learner.threads, made.rollout.threads_per_engine) == (2, 1)
    out = capsys.readouterr().out
    assert "Derived from this machine" in out and "4 cores of 8 for 2 ranks; engines work at the same time" in out
    assert "rollout.threads_per_engine" in out and "3.7M parameters: a second thread gains nothing" in out
    assert prepare(made) == made and capsys.readouterr().out == "", "what is set is neither changed nor printed"


def test_a_policy_that_cannot_be_read_counts_as_large_and_is_refused_before_anything_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert num_parameters(str(tmp_path)) is None
    on(monkeypatch, 8)
    where = console()
    missing = replace(config(engines=2), model=str(tmp_path))
    made = with_threads(missing, where)
    assert (made.learner.threads, made.rollout.threads_per_engine) == (8, 4) and printed(where) == ""
    assert with_threads(replace(missing, resume="auto"), where).learner.threads == 8  # a checkpoint may be there
    assert "8 cores of 8 for 2 engines" in printed(where)


def test_on_gpus_nobody_counts_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> list[int]:
        raise AssertionError("this may join a cluster")

    monkeypatch.setattr(cores, "cpus_of_nodes", forbidden)
    made = config(learner={"gpus": 1}, rollout={"gpus_per_engine": 1})
    assert with_threads(made, console()) is made
    assert with_engine_threads(made.rollout, "m", console()) is made.rollout
    assert with_learner_threads(made.learner, console()) is made.learner


def test_engines_without_a_learner_and_a_learner_without_engines_have_all_cores(
    monkeypatch: pytest.MonkeyPatch, dense_policy: Path, tmp_path: Path
) -> None:
    on(monkeypatch, 8)
    where = console()
    two = RolloutConfig(num_engines=2)
    assert with_engine_threads(two, str(tmp_path), where).threads_per_engine == 4
    assert with_engine_threads(two, str(dense_policy), where).threads_per_engine == 1
    assert with_learner_threads(LearnerConfig(cpu_ranks=3), where).threads == 2
    assert with_learner_threads(LearnerConfig(), where).threads == 8
    assert printed(where).count("Derived from this machine") == 4
    by_hand = RolloutConfig(threads_per_engine=3), LearnerConfig(threads=3)
    assert with_engine_threads(by_hand[0], "m", where) is by_hand[0]
    assert with_learner_threads(by_hand[1], where) is by_hand[1]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),  # as Ray, whole CPUs
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_container_has_the_cores_of_its_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert local_cpus(tmp_path) == expected
