"""Sampling settings, what is refused, and where prompts come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from rl.data import DataColumns, prompts_of
from rl.evaluation.config import SAMPLING_PRESETS, SamplingName, SamplingRunConfig, check_sampling_run, sampling_of
from rollout.config import RolloutConfig
from rollout.types import Sampling

CONFIG = SamplingRunConfig(model="small", data="data.jsonl", reward="exact")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", (1.0, 1.0, 0, 0.0)),
        ("greedy", (0.0, 1.0, 0, 0.0)),
        ("thinking-moe", (0.6, 0.95, 20, 0.0)),
        ("thinking-dense", (1.0, 0.95, 20, 0.0)),
        ("instruct", (0.7, 0.8, 20, 1.5)),
        ("instruct-text", (1.0, 1.0, 40, 2.0)),
    ],
)
def test_presets_are_those_of_the_report_and_the_model_cards(name: SamplingName, expected: tuple[float, ...]) -> None:
    sampling = sampling_of(replace(CONFIG, sampling=name))
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.presence_penalty) == expected
    assert sampling.max_tokens == 32_768
    check_sampling_run(replace(CONFIG, sampling=name, samples=1 if name == "greedy" else 16))


def test_every_preset_is_an_option() -> None:
    assert set(SAMPLING_PRESETS) == set(get_args(SamplingName))


def test_plain_samples_as_training_does_and_an_option_replaces_a_preset() -> None:
    rollout = RolloutConfig(temperature=0.8, max_tokens=16)
    assert sampling_of(replace(CONFIG, rollout=rollout)) == Sampling(max_tokens=16, temperature=0.8)
    assert sampling_of(replace(CONFIG, sampling="instruct", top_p=1.0, presence_penalty=0.0)) == Sampling(
        max_tokens=32_768, temperature=0.7, top_k=20
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: replace(c, samples=0), "samples must be >= 1, got 0"),
        (lambda c: replace(c, limit=-1), "limit must be >= 0, got -1"),
        (lambda c: replace(c, temperature=-0.1), "temperature must be >= 0, got -0.1"),
        (lambda c: replace(c, top_p=0.0), "top_p must be > 0 and at most 1, got 0.0"),
        (lambda c: replace(c, top_k=-1), "top_k must be >= 0, got -1"),
        (lambda c: replace(c, presence_penalty=3.0), "presence_penalty must be from -2 to 2, got 3.0"),
        (lambda c: replace(c, sampling="greedy"), "gives the same answer 16 times: pass --samples 1"),
        (lambda c: replace(c, reward_workers=0), "reward_workers must be > 0, got 0"),
        (
            lambda c: replace(c, rollout=RolloutConfig(max_tokens=99, max_model_len=99)),
            "rollout.max_tokens = 99 leaves no room for a prompt in rollout.max_model_len = 99",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_value_and_the_remedy(change: Callable[..., Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_sampling_run(change(CONFIG))


def write(folder: Path) -> Path:
    Image.new("RGB", (8, 4), (255, 0, 0)).save(folder / "red.png")
    file = folder / "data.jsonl"
    rows = [{"query": f"{i}?", "image": "red.png", "label": str(i), "kind": "abc"[i]} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


COLUMNS = DataColumns(question="query", answer="label", task="kind")


def test_a_file_is_read_by_its_columns_and_its_pictures_lie_beside_it(tmp_path: Path) -> None:
    from datasets import Dataset

    file = write(tmp_path)
    Dataset.from_json(str(file)).to_parquet(tmp_path / "data.parquet")
    Dataset.from_json(str(file)).save_to_disk(tmp_path / "saved")
    for data in (file, tmp_path / "data.parquet"):
        prompts = prompts_of(replace(CONFIG, data=str(data), columns=COLUMNS))
        assert [(prompt.answer, prompt.task) for prompt in prompts] == [("0", "a"), ("1", "b"), ("2", "c")]
        assert prompts[0].images[0].getpixel((0, 0)) == (255, 0, 0)
        assert prompts[2].id == "row-2"
    saved = prompts_of(replace(CONFIG, data=str(tmp_path / "saved"), columns=replace(COLUMNS, image=None)))
    assert [prompt.answer for prompt in saved] == ["0", "1", "2"]


def test_a_function_returns_prompts_or_rows(tmp_path: Path) -> None:
    code = """
from rollout import Prompt
from rollout.data.prompts import prompts_from

def made():
    return [Prompt(id="a", messages=[], answer="1")]

def lazy():
    return prompts_from(made())

def rows():
    return [{"query": "1?", "label": "1", "kind": "sums"}]
"""
    (tmp_path / "own.py").write_text(code)
    for name in ("made", "lazy", "rows"):
        columns = replace(COLUMNS, image=None)
        [prompt] = prompts_of(replace(CONFIG, data=f"{tmp_path}/own.py:{name}", columns=columns))
        assert prompt.answer == "1"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": "nowhere.jsonl"}, "there is no file or folder nowhere.jsonl: give a .parquet"),
        ({"data": "own.py:none"}, "there is no file .*own.py"),
        ({"data": "{folder}/data.jsonl"}, "to_prompt asks for column 'question', but the dataset has 'query', 'image'"),
        ({"data": "{folder}"}, "column 'question'"),
        ({"data": "{folder}/data.jsonl", "layout": "mathvisa"}, "layout must be one of geometry3k, .*, got 'mathvisa'"),
        ({"data": "{folder}/data.jsonl", "layout": "gsm8k"}, "to_prompt asks for column 'answer'"),
    ],
)
def test_data_that_cannot_be_read_is_told(tmp_path: Path, change: dict[str, str], told: str) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=told):
        prompts_of(replace(CONFIG, split="train", **change | {"data": change["data"].format(folder=tmp_path)}))
