"""LoRA's adapters alone on their way to the engine, fp32, real images; and what a LoRA run leaves for others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from policies.export import save_policy
from policies.loading import load_policy, load_processor
from policies.lora import adapter_files, is_adapter
from policies.small.qwen3_vl import save_small_policy
from rl.config import LearnerConfig, LoraConfig, TrainConfig
from rl.learner import Learner
from rollout.config import RolloutConfig
from rollout.data.prompts import prompts_from
from rollout.tasks.digit_sums import digit_sums, to_prompt
from rollout.types import EngineFailed, Sampling
from rollout.weight_sums import file_sums
from rollout.weights.senders import AdapterSender
from tests.engines import EngineThread, largest_gap

pytestmark = pytest.mark.engine

CONFIG = RolloutConfig(dtype="float32", max_tokens=12, max_model_len=128)
SAMPLING = Sampling(max_tokens=12)
PROMPTS = prompts_from(digit_sums("train", num_prompts=8), to_prompt)[:8]
LORA = LoraConfig(rank=4, alpha=16.0, parts=("language",), sync="adapter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_policy(tmp_path_factory.mktemp("policy") / "dense", kind="dense", seed=0)


def make_learner(folder: Path, seed: int) -> Learner:
    """With adapters of which both halves are random, over the weights in `folder`."""
    learning = LearnerConfig(dtype="float32", threads=1)
    learner = Learner(TrainConfig(model=str(folder), rollout=CONFIG, learner=learning, lora=LORA), folder)
    change_adapters(learner, seed)
    return learner


def change_adapters(learner: Learner, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@dataclass(frozen=True)
class Exported:
    """A LoRA run's learner, the folder that it has exported, and an engine that has started from there."""

    learner: Learner
    folder: Path
    engine: EngineThread


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    learner, target = make_learner(folder, 3), tmp_path_factory.mktemp("exported")
    save_policy(learner.model, learner.processor, target)
    engine = EngineThread(target, CONFIG, lora_rank=LORA.rank)
    yield Exported(learner, target, engine)
    engine.close()


def test_a_lora_runs_export_is_a_policy_for_others_without_peft(exported: Exported):
    weights = load_policy(exported.folder, dtype=torch.float32, device="cpu").named_parameters()
    assert not any("lora" in name for name, _ in weights)
    assert exported.engine.engine.policy_version == 0, "no adapter has come yet"
    assert largest_gap(exported.learner, exported.engine.generate(PROMPTS, SAMPLING)) <= 1e-5


def test_engine_and_learner_agree_after_each_of_two_syncs_of_adapters(exported: Exported):
    engine, learner = exported.engine, make_learner(exported.folder, 1)  # a run that goes on from the last one's export
    files = partial(adapter_files, learner.model, rank=LORA.rank, alpha=LORA.alpha, parts=LORA.parts)
    sender = AdapterSender(files, engine)
    groups = base = engine.generate(PROMPTS, SAMPLING)
    for seed in (1, 2):
        change_adapters(learner, seed)
        assert largest_gap(learner, groups) > 1e-2, "the adapters did not change enough to prove anything"
        metrics = sender.send_weights(engine.engine.policy_version + 1)
        groups = engine.generate(PROMPTS, SAMPLING)
        assert largest_gap(learner, groups) <= 1e-5
        assert {c.policy_version for group in groups for c in group.completions} == {seed}
    numbers = sum(p.numel() for name, p in learner.model.named_parameters() if is_adapter(name))
    header = 20_000  # names and shapes, and the configuration
    assert 4 * numbers < metrics["sync/bytes"] < 4 * numbers + header
    assert metrics["sync/bytes"] < 4 * sum(p.numel() for p in learner.model.parameters()) / 10
    assert [c.text for g in base for c in g.completions] != [c.text for g in groups for c in g.completions]


def test_adapters_that_arrive_changed_are_refused_before_they_are_used(exported: Exported):
    engine, version = exported.engine, exported.engine.engine.policy_version
    files = adapter_files(exported.learner.model, rank=LORA.rank, alpha=LORA.alpha, parts=LORA.parts)
    sums = file_sums(files)
    cut = {name: content[:-1] for name, content in files.items()}
    with pytest.raises(EngineFailed, match="2 of 2 weights are not the learner's after a sync: adapter_config.json"):
        engine.start(engine.engine.load_adapter(cut, version + 1, sums)).result(timeout=60)
    assert engine.engine.policy_version == version
    engine.start(engine.engine.load_adapter(files, version + 1, sums)).result(timeout=60)
    assert engine.engine.policy_version == version + 1


def test_the_files_are_those_of_peft(folder: Path, tmp_path: Path):
    from peft import PeftModel

    learner = make_learner(folder, 4)
    for name, content in adapter_files(learner.model, rank=4, alpha=16.0, parts=("language",)).items():
        (tmp_path / name).write_bytes(content)
    theirs = PeftModel.from_pretrained(load_policy(folder, dtype=torch.float32, device="cpu"), tmp_path)
    merged = dict(theirs.merge_and_unload().named_parameters())
    save_policy(learner.model, load_processor(folder), tmp_path / "merged")
    for name, parameter in load_policy(tmp_path / "merged", dtype=torch.float32, device="cpu").named_parameters():
        torch.testing.assert_close(merged[name], parameter, rtol=0, atol=1e-6)
