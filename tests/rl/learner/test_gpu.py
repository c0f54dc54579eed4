"""The learner on a CUDA device: what it gives on a CPU, in less memory where it is told to. `pytest -m gpu`.

It needs neither Ray nor vLLM.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rl.config import LoraConfig, TrainConfig
from rl.learner import Learner
from tests.learning import config, difference, rollout, watch_gradients

pytestmark = pytest.mark.gpu

CONTENT = {
    "images": rollout(),
    "text": rollout(with_images=False),
    "videos": rollout(with_videos=True, num_groups=2),
}


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    """A GPU convolves in TF32 unless told otherwise, which is not what the CPU does."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def process_group() -> Iterator[None]:
    """One rank, whose policy FSDP2 holds."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def on(device: str, options: TrainConfig, **learner) -> TrainConfig:
    return replace(options, learner=replace(options.learner, gpus=int(device == "cuda"), **learner))


def peak_bytes(options: TrainConfig, policy: Path, content: str) -> tuple[list[torch.Tensor], float]:
    """Gradients of one update, and what it took above what was there before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients, metrics = gradients_and_metrics(options, policy, content)
    return gradients, metrics["memory/learner_peak_bytes"] - before


def gradients_and_metrics(options: TrainConfig, policy: Path, content: str) -> tuple[list[torch.Tensor], dict]:
    learner = Learner(replace(options, model=str(policy)), policy)
    gradients = watch_gradients(learner)
    return gradients, learner.step(CONTENT[content]).metrics


@pytest.mark.parametrize("content", CONTENT)
def test_an_update_is_that_of_a_cpu(policy: Path, content: str):
    options = config(num_minibatches=2, learning_rate=1e-4)
    (cpu, its), (gpu, ours) = (gradients_and_metrics(on(d, options), policy, content) for d in ("cpu", "cuda"))
    assert len(cpu) == len(gpu) == 2
    assert difference(gpu[0], cpu[0]) <= 1e-4
    assert difference(gpu[1], cpu[1]) <= 1e-3  # after an update, in which AdamW makes much of little
    for name in ("loss/objective", "policy/entropy", "rollout/logprob_gap_mean"):
        assert ours[name] == pytest.approx(its[name], abs=1e-4), name


def test_lora_is_that_of_a_cpu(policy: Path):
    options = replace(config(), lora=LoraConfig(rank=4, parts=("language", "vision")))
    cpu, gpu = (gradients_and_metrics(on(d, options), policy, "images")[0] for d in ("cpu", "cuda"))
    assert difference(gpu[0], cpu[0]) <= 1e-4


def test_checkpointing_takes_less_memory_for_the_same_gradients(policy: Path):
    found, peaks = zip(
        *(
            peak_bytes(on("cuda", config(), gradient_checkpointing=checkpointing), policy, "images")
            for checkpointing in (True, False)
        ),
        strict=True,
    )
    assert difference(found[0][0], found[1][0]) <= 1e-5
    assert peaks[0] < peaks[1]


@pytest.mark.usefixtures("process_group")
def test_offload_takes_less_memory_for_the_same_gradients(policy: Path):
    found, peaks = zip(
        *(peak_bytes(on("cuda", config(), offload=offload), policy, "images") for offload in (True, False)), strict=True
    )
    assert difference(found[0][0], found[1][0]) <= 1e-5
    assert peaks[0] < peaks[1]


@pytest.mark.usefixtures("process_group")
def test_a_sharded_policy_learns_what_a_whole_one_does(policy: Path):
    options = on("cuda", config(num_minibatches=2))
    sharded, _ = gradients_and_metrics(options, policy, "images")
    dist.destroy_process_group()
    whole, _ = gradients_and_metrics(options, policy, "images")
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    assert difference(sharded[0], whole[0]) <= 1e-5


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(policy: Path, tmp_path: Path):
    options = config()
    first = Learner(on("cuda", options), policy)
    first.step(CONTENT["images"])
    first.save(tmp_path)
    losses = []
    for device in ("cuda", "cpu"):
        learner = Learner(on(device, options), tmp_path)
        learner.load(tmp_path)
        losses.append(learner.step(CONTENT["images"]).metrics)
    for name in ("loss/objective", "policy/entropy", "policy/grad_norm"):
        assert losses[1][name] == pytest.approx(losses[0][name], rel=1e-3, abs=1e-4), name


def test_bfloat16_is_near_float32(policy: Path):
    samples = [sample for group in CONTENT["images"] for sample in group]
    found = []
    for dtype in ("float32", "bfloat16"):
        learner = Learner(on("cuda", config(dtype=dtype)), policy)
        found.append(torch.cat([its[its != 0] for its in learner.old_logprobs(learner.make_microbatches(samples))]))
    gap = (found[0] - found[1]).abs()
    assert 0 < gap.mean() <= 0.05


def test_replayed_experts_are_those_of_the_old_policy(moe_policy: Path):
    """The first minibatch teaches nothing, so the second finds the weights of the old policy: in bfloat16, too."""
    groups = [[replace(sample, advantage=0.0) for sample in group] for group in CONTENT["images"]]
    learner = Learner(on("cuda", config(num_minibatches=2, dtype="bfloat16")), moe_policy)
    metrics = learner.step(groups).metrics
    assert metrics["policy/routing_agreement"] == 1.0
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-3)
