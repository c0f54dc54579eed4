"""Two ranks of the learner under Ray, without an engine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from policies.loading import load_policy
from rl.config import LearnerConfig
from rl.learner.group import LearnerGroup
from rl.objectives import Objective
from rl.sapo import sapo_loss
from rl.types import LearnerFailed
from tests.learning import config, rollout

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]  # Ray, and processes with torch: 40 seconds

SOON = 60
"""Seconds within which a failure must show; ranks that wait for one another give up after an hour."""


def new_group(
    model: str | Path, objective: Objective = sapo_loss, num_ranks: int = 2, **options_of_learner: Any
) -> LearnerGroup:
    learner = LearnerConfig(dtype="float32", cpu_ranks=num_ranks, **options_of_learner)
    # A key's bias has no gradient but rounding, which AdamW's usual eps would blow up to whole steps.
    options = replace(config(eps=1e-5), learner=learner)
    return LearnerGroup(options, model, None, "shared_memory", objective)


@pytest.fixture
def make(dense_policy: Path) -> Iterator[Callable[..., LearnerGroup]]:
    groups = []

    def make(*, model: str | Path = dense_policy, **options: Any) -> LearnerGroup:
        groups.append(new_group(model, **options))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


@pytest.fixture(scope="module")
def flag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this file is there, rank 1 of `two` has no idea."""
    return tmp_path_factory.mktemp("flag") / "fails"


@pytest.fixture(scope="module")
def two(dense_policy: Path, flag: Path) -> Iterator[LearnerGroup]:
    """Two ranks for several tests, which come in order: to start costs ten seconds of a core for each."""

    def fails_where_told(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT, *, num_sequences):
        if flag.exists() and dist.get_rank() == 1:
            raise ValueError("no idea")
        return sapo_loss(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT, num_sequences=num_sequences)

    group = new_group(dense_policy, fails_where_told)
    yield group
    group.close()


def comparable(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", "memory/"))}


def test_two_ranks_step_sync_and_save_as_one_does(make, two: LearnerGroup, dense_policy: Path, tmp_path: Path):
    reports = []
    for num_ranks, group in enumerate((make(num_ranks=1), two), 1):
        group.connect([])
        reports.append(group.step(rollout()))
        num_parameters = load_policy(dense_policy, dtype=torch.float32, device="cpu").num_parameters()
        report = group.sync(1, [])
        assert not report.failures and report.published.version == 1
        assert report.metrics["sync/bytes"] == pytest.approx(
            4 * num_parameters, rel=0.01
        )  # each starts on a cache line
        group.save(tmp_path / str(num_ranks))
    assert comparable(reports[1].metrics) == pytest.approx(comparable(reports[0].metrics), rel=1e-5, abs=1e-6)
    one, two = (load_policy(tmp_path / name, dtype=torch.float32, device="cpu") for name in "12")
    for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_the_error_of_one_rank_is_told_soon_and_not_what_follows_from_it(
    two: LearnerGroup, flag: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rl.learner.calls.ERROR_GRACE_SECONDS", 3.0)  # rank 0 waits for rank 1, and is heard no more
    flag.touch()
    started = time.monotonic()
    with pytest.raises(ValueError, match="rank 1 of the learner: no idea"):
        two.step(rollout())
    assert time.monotonic() - started < SOON


def test_a_rank_that_dies_ends_the_step_soon_and_is_named(make):
    def dies(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT, *, num_tokens):
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return (logprobs_BT * mask_BT).sum() / num_tokens, {}

    group = make(objective=dies)
    group.connect([])
    started = time.monotonic()
    with pytest.raises(LearnerFailed, match="rank 1 of the learner: a worker process died"):
        group.step(rollout())
    with pytest.raises(LearnerFailed, match="rank 1 of the learner: a worker process died"):
        group.check()
    assert time.monotonic() - started < SOON


def test_a_group_that_hangs_fails_at_its_time_limit_and_starts_anew_from_a_checkpoint(make, tmp_path: Path):
    others = learner_processes()
    group = make(num_ranks=1, step_timeout=15.0)
    group.connect([])
    group.check()
    first = comparable(group.step(rollout()).metrics)
    group.save(tmp_path)
    second = comparable(group.step(rollout()).metrics)
    [learner] = learner_processes() - others
    learner.suspend()
    with pytest.raises(LearnerFailed, match=r"rank 0 .* not answered within learner.step_timeout = 15 s"):
        group.step(rollout())
    group.restart(tmp_path, tmp_path)
    assert not learner.is_running() or learner.status() == psutil.STATUS_ZOMBIE
    group.connect([])
    group.check()
    assert comparable(group.step(rollout()).metrics) == second != first


def test_a_lack_of_memory_is_a_failure_of_the_process_and_another_error_is_not(make):
    def lacks_memory(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT, *, num_tokens):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    group = make(objective=lacks_memory, num_ranks=1)
    group.connect([])
    with pytest.raises(LearnerFailed, match="OutOfMemoryError: tried to allocate 20 GiB"):
        group.step(rollout())


def learner_processes() -> set[psutil.Process]:
    """Returns the ranks of this test's cluster."""
    return {child for child in psutil.Process().children(recursive=True) if "_LearnerActor" in child.name()}


def test_a_policy_that_lacks_a_weight_is_refused_by_its_name(make, dense_policy: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    for file in dense_policy.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.visual.merger.linear_fc1.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weight model\.visual\.merger\.linear_fc1\.bias"):
        make(model=tmp_path).connect([])
