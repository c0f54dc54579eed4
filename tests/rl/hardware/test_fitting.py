"""What is derived so that a run fits its GPUs: the cheapest options that suffice, and a refusal where none do."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from policies.model_sizes import PUBLISHED
from rl.config import LearnerConfig, LoraConfig, TeacherConfig, TrainConfig
from rl.hardware import fitting
from rl.hardware.fitting import fit_to_gpus, fitted
from rl.hardware.memory import Machine, plan_memory
from rl.hardware.placement import derive_placement
from rollout.config import RolloutConfig


def derived(config: TrainConfig, size: str, **machine: Any) -> dict[str, Any]:
    where = Machine(**{"device_gib": 80.0} | machine)
    made, options = fitted(config, PUBLISHED[size], where)
    found = {option.name.removeprefix("learner."): option.value for option in options}
    assert not found or plan_memory(made, PUBLISHED[size], where, group_size=made.group_size).fits
    return found


def placed(placement: Any, *gpus: int, **options: Any) -> TrainConfig:
    return derive_placement(TrainConfig(model="m", placement=placement, **options), gpus)


def by_hand(**learner: Any) -> TrainConfig:
    """The README's two GPUs: one to learn, one to generate."""
    return TrainConfig(model="m", learner=LearnerConfig(gpus=1, **learner), rollout=RolloutConfig(gpus_per_engine=1))


def test_what_fits_is_left_alone() -> None:
    config = placed("colocated", 8)
    assert fitted(config, PUBLISHED["2B"], Machine(device_gib=80.0)) == (config, [])


def test_the_readmes_two_gpus_are_given_checkpointing_alone() -> None:
    assert derived(by_hand(), "2B") == {"gradient_checkpointing": True}


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("placement", ["separate", "colocated"])
@pytest.mark.parametrize("gpus", [(2,), (8,), (8, 8)])
def test_a_default_run_of_any_size_fits_or_says_why(size: str, placement: str, gpus: tuple[int, ...]) -> None:
    config, options = fitted(placed(placement, *gpus), PUBLISHED[size], Machine(device_gib=80.0))
    plan = plan_memory(config, PUBLISHED[size], Machine(device_gib=80.0), group_size=8)
    assert plan.fits or (not options and all(": use " in problem for problem in plan.problems))


def test_engines_beside_the_learner_get_a_smaller_share_before_anything_is_offloaded() -> None:
    # 2B: 16 bytes × 2.1 G = 32 GiB of states, 40 % of 80 GiB; with 6 % of headroom .94 − .40 = .54, in steps of .05.
    found = derived(placed("colocated", 1), "2B")
    assert found == {"gradient_checkpointing": True, "rollout.gpu_memory_utilization": 0.5}


def test_states_that_do_not_fit_go_to_host_memory_and_the_engines_get_their_share_back() -> None:
    found = derived(placed("colocated", 8), "8B", device_gib=40.0)
    assert found["offload"] and found["rollout.gpu_memory_utilization"] == 0.85


def test_an_offloaded_optimizer_has_the_cpus_of_its_machine() -> None:
    found = derived(placed("separate", 8), "8B", cpus=96)
    assert found == {"gradient_checkpointing": True, "offload": True, "threads": 48}  # two ranks learn
    for threads in (1, 7):
        set_by_hand = placed("separate", 8, learner=LearnerConfig(threads=threads))
        assert "threads" not in derived(set_by_hand, "8B", cpus=96)


def test_states_are_not_offloaded_to_host_memory_that_has_no_room() -> None:
    # 8B: 16 bytes × 8.8 G = 131 GiB, by 1.3 for rounding 170.
    assert derived(by_hand(), "8B", host_gib=200.0)["offload"]
    assert derived(by_hand(), "8B", host_gib=160.0) == {}


def test_each_of_several_nodes_has_a_replica_of_the_policy_where_its_gpus_hold_one() -> None:
    assert derived(placed("colocated", 8, 8), "2B") == {"replicas": 2}
    # 30B-A3B: 16 bytes × 31.1 G = 463 GiB, 58 of each of 8 GPUs.
    assert "replicas" not in derived(placed("colocated", 8, 8), "30B-A3B")
    large = derived(placed("colocated", 8, 8, rollout=RolloutConfig(gpus_per_engine=2)), "30B-A3B", device_gib=140.0)
    assert large["replicas"] == 2 and "offload" not in large


def test_a_node_has_no_replica_of_its_own_where_others_use_its_gpus_or_its_states_are_offloaded() -> None:
    beside_teacher = placed("colocated", 8, 8, teacher=TeacherConfig(model="large", gpus_per_engine=4))
    assert beside_teacher.learner.gpus == 12
    assert "replicas" not in derived(beside_teacher, "2B")
    assert "replicas" not in derived(placed("separate", 8, 8), "2B")  # four GPUs of one node learn
    assert derived(placed("separate", *[8] * 8), "2B")["replicas"] == 2
    assert "replicas" not in derived(placed("colocated", 8, 8, learner=LearnerConfig(offload=True)), "2B")
    assert derived(placed("colocated", 4, 4), "2B", gpus=4)["replicas"] == 2


def test_an_option_that_is_set_stays() -> None:
    assert "replicas" not in derived(placed("colocated", 8, 8, learner=LearnerConfig(replicas=1)), "2B")
    assert "microbatch_tokens" not in derived(by_hand(microbatch_tokens=32768), "2B")
    config = placed("colocated", 1, rollout=RolloutConfig(gpu_memory_utilization=0.55))
    assert "rollout.gpu_memory_utilization" not in derived(config, "2B")


def test_microbatches_shrink_where_checkpointing_is_not_enough_but_never_below_a_longest_sequence() -> None:
    config = by_hand()
    assert derived(config, "4B", device_gib=88.0)["microbatch_tokens"] == 8192
    longest = replace(config, rollout=replace(config.rollout, max_model_len=16384, max_tokens=1024))
    assert "microbatch_tokens" not in derived(longest, "4B", device_gib=88.0)


class Run:
    """A run of the 8B on a machine with GPUs of a size and some host memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, gib: float, host_gib: float) -> None:
        machine = Machine(device_gib=gib, host_gib=host_gib)
        monkeypatch.setattr(fitting, "this_machine", lambda: (machine, True))
        monkeypatch.setattr(fitting, "shape_of_checkpoint", lambda model: PUBLISHED["8B"])
        self.console = Console(file=StringIO(), width=200)

    def fit(self, config: TrainConfig) -> TrainConfig:
        return fit_to_gpus(config, self.console)

    @property
    def printed(self) -> str:
        return self.console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_derived_is_printed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, gib=140.0, host_gib=1000.0)
    made = run.fit(placed("colocated", 8))
    assert made.learner.gradient_checkpointing
    assert "to fit the GPUs" in run.printed and "one more forward pass" in run.printed
    assert run.fit(made) == made  # what has been derived is derived again, as a resume does


def test_a_run_that_does_not_fit_is_refused_with_what_would_and_starts_if_asked_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, gib=24.0, host_gib=64.0)
    config = replace(by_hand(), rollout=RolloutConfig(gpus_per_engine=1, gpu_memory_utilization=0.9))
    with pytest.raises(ValueError, match=r"does not fit GPUs of 24 GiB: the learner needs .*use --allow-overcommit"):
        run.fit(config)
    assert run.fit(replace(config, allow_overcommit=True)).allow_overcommit
    big = Run(monkeypatch, gib=80.0, host_gib=64.0)
    with pytest.raises(ValueError, match=r"adapters alone fit: --lora\.rank 16"):
        big.fit(by_hand())
    assert big.fit(replace(by_hand(), lora=LoraConfig(rank=16)))


def test_a_run_on_cpus_has_no_plan(tmp_path: Path) -> None:
    console = Console(file=StringIO())
    config = TrainConfig(model="nowhere")
    assert fit_to_gpus(config, console) is config and console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_expandable_segments_are_refused_where_engines_share_the_learners_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, gib=140.0, host_gib=1000.0)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:64")
    with pytest.raises(
        ValueError, match="PYTORCH_ALLOC_CONF = expandable_segments:True.* unset it, or use placement separate"
    ):
        run.fit(placed("colocated", 8))
    assert run.fit(placed("separate", 8)).learner.gpus == 2
