"""The memory plan: against peaks that were measured, by hand, and where it says no."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from policies.model_sizes import PUBLISHED
from rl.config import LearnerConfig, LoraConfig, OptimizerConfig, TeacherConfig, TrainConfig
from rl.hardware.learner_memory import image_tokens
from rl.hardware.memory import GIB, Machine, MemoryPlan, memory_table, plan_memory, plan_teacher
from rl.hardware.sync_memory import sync_memory
from rollout.config import RolloutConfig


def config(*, gpus: int = 1, learner: dict | None = None, rollout: dict | None = None, **options) -> TrainConfig:
    """What bench/learner.py measures: 8 responses of up to 1,024 tokens to a picture of 256 × 256."""
    rollout = {"max_tokens": 1024, "max_image_pixels": 256 * 256, "gpus_per_engine": 1} | (rollout or {})
    return TrainConfig(
        model="m",
        prompts_per_step=8,
        rollout=RolloutConfig(**rollout),
        learner=LearnerConfig(gpus=gpus, **(learner or {})),
        **options,
    )


def lines(plan: MemoryPlan) -> dict[str, float]:
    return {item.name: item.bytes for item in plan.learner}


@pytest.mark.parametrize(
    ("size", "checkpointing", "tokens", "gigabytes"),
    # torch.cuda.max_memory_allocated of bench/learner.py on an H200, torch 2.11, transformers 5.19, bfloat16, 52,751 tokens a step.
    [("2B", True, 16384, 41.74), ("2B", False, 8192, 64.22), ("4B", True, 16384, 85.34)],
)
def test_a_plan_agrees_with_a_measured_peak(size: str, checkpointing: bool, tokens: int, gigabytes: float):
    options = config(learner={"gradient_checkpointing": checkpointing, "microbatch_tokens": tokens})
    plan = plan_memory(options, PUBLISHED[size], Machine(device_gib=140), group_size=16)
    assert plan.learner_peak / 1e9 == pytest.approx(gigabytes, rel=0.15)


@pytest.mark.parametrize(
    ("size", "checkpointing", "tokens", "gigabytes"),
    [("2B", True, 16384, 38.43), ("2B", False, 8192, 55.89), ("4B", True, 16384, 77.87)],
)
def test_so_does_that_of_a_sharded_policy(size: str, checkpointing: bool, tokens: int, gigabytes: float):
    """FSDP2 over one rank keeps all of the states there, and gathers as any number of ranks does."""
    options = config(learner={"gradient_checkpointing": checkpointing, "microbatch_tokens": tokens})
    offloaded = replace(options, learner=replace(options.learner, offload=True))
    states = plan_memory(options, PUBLISHED[size], Machine(device_gib=140), group_size=16).learner_kept
    at_work = plan_memory(offloaded, PUBLISHED[size], Machine(device_gib=140), group_size=16).learner_peak
    assert (states + at_work) / 1e9 == pytest.approx(gigabytes, rel=0.15)


def test_what_every_parameter_takes_worked_by_hand():
    # float32 master weights, gradients and two moments: 16 bytes each, over 4 ranks
    shape = PUBLISHED["8B"]
    plan = plan_memory(config(gpus=4), shape, Machine(device_gib=80), group_size=16)
    assert plan.learner_kept == 16 * shape.parameters / 4
    assert lines(plan)["AdamW's moments"] == 8 * shape.parameters / 4


def test_each_replica_is_held_by_its_own_ranks_alone():
    shape = PUBLISHED["8B"]
    options = config(gpus=16, learner={"replicas": 4})
    assert plan_memory(options, shape, Machine(device_gib=80), group_size=16).learner_kept == 16 * shape.parameters / 4
    offloaded = config(gpus=16, learner={"replicas": 2, "offload": True})
    plan = plan_memory(offloaded, shape, Machine(device_gib=80), group_size=16)
    assert plan.host_total == pytest.approx(1.3 * 16 * shape.parameters)  # a whole one on each node


def test_a_replica_that_is_too_large_has_the_remedy_of_fewer():
    plan = plan_memory(
        config(gpus=16, learner={"replicas": 16}), PUBLISHED["8B"], Machine(device_gib=80), group_size=16
    )
    assert "learner.replicas 1" in plan.problems[0]


@pytest.mark.parametrize(
    ("options", "per_parameter", "learning"),
    [
        ({}, 4, 8 * PUBLISHED["2B"].parameters),
        (
            {"optimizer": OptimizerConfig(vision_learning_rate=0)},
            4,
            8 * (PUBLISHED["2B"].parameters - PUBLISHED["2B"].tower),
        ),
        # Rank 1, language, as below: the adapters and their moments.
        ({"lora": LoraConfig(rank=1)}, 4, 12 * 28 * (2 * (2048 + 2048) + 2 * (2048 + 1024) + 3 * (2048 + 6144))),
    ],
)
def test_a_checkpoint_has_the_weights_and_the_moments_of_all_that_learns(
    options: dict, per_parameter: int, learning: int
):
    shape = PUBLISHED["2B"]
    for gpus in (1, 8):  # written once, however many ranks there are
        plan = plan_memory(config(gpus=gpus, **options), shape, Machine(device_gib=80), group_size=16)
        assert plan.checkpoint_total == per_parameter * shape.parameters + learning


@pytest.mark.parametrize(
    ("keep", "told"), [(2, "23.8 each; 71.3 with 2 kept and one being written"), (0, "23.8 each; all are kept")]
)
def test_the_table_names_the_size_of_a_checkpoint_and_of_all_that_are_kept(keep: int, told: str):
    # 2B: 12 bytes × 2.13 G = 23.8 GiB, three times 71.3.
    console = Console(width=140, record=True, file=StringIO())
    plan = plan_memory(config(), PUBLISHED["2B"], Machine(device_gib=140), group_size=16)
    console.print(memory_table(plan, keep_checkpoints=keep))
    [line] = [line for line in console.export_text().splitlines() if "checkpoints on disk" in line]
    assert " ".join(line.replace("│", " ").split()) == f"checkpoints on disk {told}"


def test_a_frozen_tower_has_no_gradients():
    shape = PUBLISHED["2B"]
    frozen = config(optimizer=OptimizerConfig(vision_learning_rate=0))
    kept = lines(plan_memory(frozen, shape, Machine(device_gib=80), group_size=16))
    assert kept["weights"] == 4 * shape.parameters
    assert kept["gradients"] == 4 * (shape.parameters - shape.tower)


def test_adapters_alone_have_gradients():
    # Rank 1, language: each layer's q and o add 2 (H + Q), k and v 2 (H + K), the MLP 3 (H + I).
    shape = PUBLISHED["2B"]
    learning = 28 * (2 * (2048 + 2048) + 2 * (2048 + 1024) + 3 * (2048 + 6144))
    lora = LoraConfig(rank=1)
    full = config(lora=lora, learner={"dtype": "float32"})
    kept = lines(plan_memory(full, shape, Machine(device_gib=80), group_size=16))
    assert kept["gradients"] == 4 * learning
    assert kept["weights"] == 4 * (shape.parameters + learning)
    # In bfloat16 the frozen matrices of layers and blocks, 1.41G + .30G of 2.13G parameters, take half.
    kept = lines(plan_memory(config(lora=lora), shape, Machine(device_gib=80), group_size=16))
    assert kept["weights"] == pytest.approx(4 * (shape.parameters + learning) - 2 * 1.71e9, rel=0.01)
    assert kept["working weights"] == pytest.approx(2 * (shape.parameters - 1.71e9), rel=0.02)


def test_a_reference_is_another_copy():
    shape = PUBLISHED["2B"]
    plan = plan_memory(config(kl_coefficient=0.1), shape, Machine(device_gib=80), group_size=16)
    assert lines(plan)["reference"] == 4 * shape.parameters
    assert plan.learner_kept == 20 * shape.parameters


def test_offloaded_states_are_in_host_memory_where_torch_rounds_them_up():
    shape = PUBLISHED["8B"]
    plan = plan_memory(config(gpus=16, learner={"offload": True}), shape, Machine(device_gib=80), group_size=16)
    assert plan.learner_kept == 0
    assert plan.host_total == pytest.approx(1.3 * 8 * 16 * shape.parameters / 16)


def test_the_cache_has_what_the_engine_leaves_of_its_share():
    plan = plan_memory(
        config(rollout={"gpu_memory_utilization": 0.5}), PUBLISHED["2B"], Machine(device_gib=80), group_size=16
    )
    assert plan.engine_total == pytest.approx(40 * GIB)
    cache = plan.engine[-1].bytes
    assert plan.sequences == pytest.approx(cache / (28 * 2 * 8 * 128 * 2) / 4096)


@pytest.mark.parametrize(
    ("transfer", "lora", "gigabytes"),
    [
        # 8B's embedding has 151,936 × 4,096 = .622G parameters. It is gathered and made contiguous, 2 × 1.245 GB.
        ("nccl", {}, 2 * 1.245 + 4 * (1.074 + 1.245)),
        ("ipc", {}, 2 * 1.245 + 2 * 1.245),  # a buffer holds it
        ("nccl", {"rank": 16}, 2 * 1.245 + 8 * 0.622 + 4 * (1.074 + 1.245)),
        ("nccl", {"rank": 16, "sync": "adapter"}, 0),
    ],
)
def test_a_weight_sync_holds_the_largest_parameter_and_pieces_on_their_way(transfer: str, lora: dict, gigabytes: float):
    options = replace(config(rollout={"weight_transfer": transfer}), lora=LoraConfig(**lora))
    items = sync_memory(options, PUBLISHED["8B"])
    assert sum(item.bytes for item in items) == pytest.approx(gigabytes * 1e9, rel=1e-3)


def test_a_shared_gpu_holds_the_engines_weights_too_in_a_weight_sync_and_not_yet_its_cache():
    options = config(rollout={"weight_transfer": "ipc", "gpu_memory_utilization": 0.5})
    plan = plan_memory(options, PUBLISHED["2B"], Machine(device_gib=80), group_size=16)
    weights = plan.engine[0].bytes
    added = sum(item.bytes for item in plan.sync)
    assert plan.sync_total == pytest.approx(plan.learner_kept + weights + 2 * GIB + added)
    tight = replace(options, rollout=replace(options.rollout, gpu_memory_utilization=0.05))
    plan = plan_memory(tight, PUBLISHED["2B"], Machine(device_gib=40), group_size=16)
    assert any("in a weight sync a GPU of the learner needs" in problem for problem in plan.problems)


def test_more_gpus_than_key_heads_keep_the_same_heads_twice():
    narrow = plan_memory(
        config(rollout={"gpus_per_engine": 4}), PUBLISHED["30B-A3B"], Machine(device_gib=80), group_size=16
    )
    wide = plan_memory(
        config(rollout={"gpus_per_engine": 8}), PUBLISHED["30B-A3B"], Machine(device_gib=80), group_size=16
    )
    per_gpu = [plan.sequences / plan.engine[-1].bytes for plan in (narrow, wide)]
    assert per_gpu[0] == pytest.approx(per_gpu[1])  # 4 heads over 4 GPUs, or over 8


@pytest.mark.parametrize(
    ("options", "device_gib", "told"),
    [
        (
            config(),
            24,
            "the learner needs .* GiB of each GPU, which has room for 22.6: use learner.gradient_checkpointing",
        ),
        (config(rollout={"gpu_memory_utilization": 0.1}), 60, "cache holds 0.* sequences of rollout.max_model_len"),
        (
            config(rollout={"weight_transfer": "ipc", "gpu_memory_utilization": 0.8}),
            80,
            "while engines generate, the learner keeps 31.7 GiB .* learner.offload, or a lower",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_a_remedy(options: TrainConfig, device_gib: float, told: str):
    plan = plan_memory(options, PUBLISHED["2B"], Machine(device_gib=device_gib), group_size=16)
    assert not plan.fits
    with pytest.raises(AssertionError, match=told):
        raise AssertionError("\n".join(plan.problems))


@pytest.mark.parametrize(
    ("rollout", "tokens"),
    [
        ({"max_image_pixels": 64 * 32, "max_images": 3}, 6),
        ({"max_image_pixels": 2**30}, 4096 - 1024),
        ({"max_image_pixels": None}, 4096 - 1024),
        ({"max_videos": 1, "max_video_pixels": 2**16}, 64 + 32),  # two frames share a token
    ],
)
def test_pictures_take_what_their_pixels_or_the_context_allow(rollout: dict, tokens: int):
    assert image_tokens(config(rollout=rollout).rollout) == tokens


def test_a_plan_of_a_cpu_run_is_refused():
    with pytest.raises(ValueError, match=r"learner.gpus = 0, but a memory plan needs GPUs"):
        plan_memory(config(gpus=0), PUBLISHED["2B"], Machine(device_gib=80), group_size=16)


def test_the_table_has_every_line_and_the_verdict():
    console = Console(width=140, record=True, file=StringIO())
    plan = plan_memory(config(), PUBLISHED["2B"], Machine(device_gib=140), group_size=16)
    console.print(memory_table(plan, keep_checkpoints=2))
    told = console.export_text()
    for words in ("learner, at the peak", "AdamW's moments", "key-value cache", "fits"):
        assert words in told


def test_a_teacher_that_has_too_few_gpus_is_told_so_and_the_logits_that_it_reads_are_counted():
    def verdict(width: int, **options) -> str:
        teacher = TeacherConfig(model="large", gpus_per_engine=width, **options)
        rollout = RolloutConfig(gpus_per_engine=1, max_model_len=20480, max_tokens=16384)
        console = Console(file=StringIO(), width=150)
        config = TrainConfig(model="small", rollout=rollout, teacher=teacher)
        console.print(plan_teacher(config.teacher, config.rollout, PUBLISHED["32B"], Machine(device_gib=80)))
        return console.file.getvalue()

    assert "fits" in verdict(4) and "does not fit" not in verdict(4)
    assert "does not fit: its cache holds 0." in verdict(1)
    assert "more teacher.gpus_per_engine" in verdict(1)
    # 8 B × 16,384 tokens × 151,936 words = 18.5 GiB, beyond the 85 % that the engine takes.
    assert "18.5" in verdict(4, max_batched_tokens=16384)
    assert "a lower teacher.gpu_memory_utilization" in verdict(4, max_batched_tokens=16384)
