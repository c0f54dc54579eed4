"""The cold start: it learns, it is found again by what made it, and it says which prompt has no answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from policies.loading import load_policy, load_processor
from policies.small import small_config, small_processor
from rl.config import ColdStartConfig
from rl.sft import cold_start, supervised_batch
from rollout.types import Observation, Prompt, Video


def prompts(*answers: str | None) -> list[Prompt]:
    content = [{"type": "image"}, {"type": "text", "text": "sum?"}]
    return [
        Prompt(
            id=f"sum-{number}",
            messages=[{"role": "user", "content": content}],
            images=[Image.new("RGB", (32, 32), (60 * number, 0, 0))],
            answer=answer,
        )
        for number, answer in enumerate(answers)
    ]


PROMPTS = prompts("1=1", "2=2")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ColdStartConfig:
    cache = tmp_path_factory.mktemp("cold_start")
    return ColdStartConfig(updates=12, batch_size=2, learning_rate=3e-3, threads=1, cache_dir=cache)


@pytest.fixture(scope="module")
def folder(config: ColdStartConfig) -> Path:
    return cold_start(config, PROMPTS)


def test_the_loss_falls_and_the_folder_is_a_policy(folder: Path):
    report = json.loads((folder / "cold_start.json").read_text())
    assert report["loss_first"] > 4  # 263 tokens of which nothing is known: ln 263 = 5.6
    assert report["loss_last"] < 0.8 * report["loss_first"]
    assert load_policy(folder, dtype=torch.float32, device="cpu").config.model_type == "qwen3_vl"
    assert load_processor(folder).tokenizer.eos_token == "<|im_end|>"


def test_an_answer_to_a_video_is_learnt_behind_the_video():
    video = Video(frames=np.zeros((4, 32, 32, 3), np.uint8), fps=2.0, frame_indices=range(4))
    content = [{"type": "video"}, {"type": "text", "text": "how many?"}]
    prompt = Prompt(id="v", messages=[{"role": "user", "content": content}], videos=[video], answer="3")
    batch = supervised_batch(small_processor(), small_config("dense"), [prompt])
    assert batch.vision.grid_U3.tolist() == [[2, 2, 2]]
    assert batch.tokens_BL[0, 1:][batch.mask_BT[0]].tolist() == [ord("3"), 258]


def test_the_same_choices_find_the_same_folder_and_teach_nothing(config: ColdStartConfig, folder: Path):
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert cold_start(config, PROMPTS) == folder
    assert cold_start(replace(config, threads=2), PROMPTS) == folder  # does not change what is learnt
    assert weights.stat().st_mtime_ns == written


def test_a_folder_that_was_cut_short_is_taught_again(config: ColdStartConfig, folder: Path):
    before = load_policy(folder, dtype=torch.float32, device="cpu").lm_head.weight
    (folder / "cold_start.json").unlink()
    (folder / "model.safetensors").unlink()  # `before` is a map of the file that was there
    (folder / "model.safetensors").write_bytes(b"half")
    assert cold_start(config, PROMPTS) == folder
    assert torch.equal(load_policy(folder, dtype=torch.float32, device="cpu").lm_head.weight, before)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"updates": 13}, {"learning_rate": 1e-4}, {"kind": "moe"}], ids=lambda c: next(iter(c))
)
def test_other_choices_have_another_folder(monkeypatch, config: ColdStartConfig, folder: Path, changed: dict):
    monkeypatch.setattr("rl.sft.supervise", lambda *_: [1.0])
    assert cold_start(replace(config, **changed), PROMPTS) != folder


@pytest.mark.parametrize(
    "others",
    [prompts("1=1", "2=3"), prompts("1=1", "2=2", "3=3"), [replace(PROMPTS[0], images=PROMPTS[1].images), PROMPTS[1]]],
    ids=["answer", "number", "image"],
)
def test_other_prompts_have_another_folder(monkeypatch, config: ColdStartConfig, folder: Path, others: list[Prompt]):
    monkeypatch.setattr("rl.sft.supervise", lambda *_: [1.0])
    assert cold_start(config, others) != folder


@pytest.mark.parametrize(
    "shown",
    [["a", "b"], ["a", Observation(text="b")], ["a", Observation(text="b", role="tool")]],
    ids=["two turns", "an observation", "a tool's observation"],
)
def test_the_same_words_in_other_roles_have_another_folder(monkeypatch, config: ColdStartConfig, shown: list):
    monkeypatch.setattr("rl.sft.supervise", lambda *_: [1.0])
    folders = {cold_start(config, PROMPTS, lambda prompt, parts=parts: parts) for parts in (["ab"], shown)}
    assert len(folders) == 2


def test_a_prompt_without_an_answer_is_named(tmp_path: Path):
    config = ColdStartConfig(updates=1, batch_size=2, threads=1, cache_dir=tmp_path)
    with pytest.raises(
        ValueError, match="prompt 'sum-1' has no answer to learn from: a cold start needs prompts with answers"
    ):
        cold_start(config, prompts("1=1", None))
    assert list(tmp_path.glob("*/cold_start.json")) == []


def test_a_supervised_batch_marks_the_answer_and_its_end():
    batch = supervised_batch(small_processor(), small_config("dense"), PROMPTS)
    # start u <vision> image </vision> s u m ? end start a | 1 = 1 end: 12 tokens of prompt, 4 to learn
    assert batch.tokens_BL.shape == (2, 16)
    assert [row.nonzero()[:, 0].tolist() for row in batch.mask_BT] == [[11, 12, 13, 14]] * 2
    assert small_processor().tokenizer.decode(batch.tokens_BL[1, 12:]) == "2=2<|im_end|>"
    assert len(batch.vision.grid_U3) == 2
