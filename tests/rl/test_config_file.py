"""Config files: the same config from TOML, YAML and JSON, options on top, and a sentence for what cannot be meant."""

from __future__ import annotations

import importlib
import json
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.check_data import CheckData
from recipes.digit_sums import DigitSums
from recipes.general_rl import GeneralRl
from rl.cli import parse
from rl.config import CorrectionConfig, LoraConfig, OptimizerConfig, TrainConfig, config_file
from rl.config.file import command_line_of, read_config_file, recipe_in

TOML = """
recipe = "digit_sums"
steps = 5
run-dir = "runs/mine"
check_references = false
reward = "my.py:score"

[optimizer]
learning_rate = 1e-5
betas = [0.8, 0.9]

[lora]
rank = 4
parts = ["language", "vision"]
"""
YAML = """
recipe: digit_sums
steps: 5
run_dir: runs/mine
check-references: no
reward: "my.py:score"
optimizer: {learning-rate: 1e-5, betas: [0.8, 0.9]}
lora:
  rank: 4
  parts: [language, vision]
"""
JSON = json.dumps(
    {
        "steps": 5,
        "run_dir": "runs/mine",
        "check_references": False,
        "reward": "my.py:score",
        "optimizer": {"learning_rate": 1e-5, "betas": [0.8, 0.9]},
        "lora": {"rank": 4, "parts": ["language", "vision"]},
    }
)
EXPECTED = DigitSums(
    steps=5,
    run_dir=Path("runs/mine"),
    check_references=False,
    reward="my.py:score",
    optimizer=replace(DigitSums().optimizer, learning_rate=1e-5, betas=(0.8, 0.9)),
    lora=replace(LoraConfig(), rank=4, parts=("language", "vision")),
)


def file_with(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("a.yml", YAML), ("a.json", JSON)])
def test_a_file_gives_its_options_and_the_recipes_defaults_give_the_rest(tmp_path: Path, name: str, text: str):
    file = file_with(tmp_path, name, text)
    assert parse(DigitSums, [str(file)]) == EXPECTED
    assert parse(DigitSums, [str(file), "--steps", "9", "--lora.parts", "experts", "--check-references"]) == replace(
        EXPECTED, steps=9, lora=replace(EXPECTED.lora, parts=("experts",)), check_references=True
    )


def recipe_configs() -> list[type]:
    """The config classes of all recipes."""
    folder = Path(importlib.import_module("recipes").__path__[0])
    modules = [importlib.import_module(f"recipes.{file.stem}") for file in sorted(folder.glob("[a-z]*.py"))]
    found = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__
    ]
    return [config for config in found if issubclass(config, TrainConfig)]


@pytest.mark.parametrize("config_type", recipe_configs(), ids=lambda config_type: config_type.__name__)
def test_the_config_of_a_run_starts_the_same_run_again(config_type: Any, tmp_path: Path):
    config = config_type()
    file = file_with(tmp_path, "config.json", json.dumps(config_file(config)))
    assert parse(config_type, [str(file)]) == config
    assert recipe_in(file) == config_type.__module__.removeprefix("recipes.")


@settings(max_examples=10)
@given(
    learning_rate=st.floats(1e-9, 1.0),
    betas=st.tuples(st.floats(0.0, 0.999), st.floats(0.0, 0.999)),
    band=st.none() | st.tuples(st.floats(0.0, 1.0), st.floats(1.0, 9.0)),
    model=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1),
    selection=st.none() | st.just("-a b.jsonl"),
)
def test_values_arrive_as_they_are_written(tmp_path_factory: pytest.TempPathFactory, **values: Any):
    config = DigitSums(
        model=values["model"],
        selection=values["selection"],
        optimizer=OptimizerConfig(learning_rate=values["learning_rate"], betas=values["betas"]),
        correction=CorrectionConfig(token_band=values["band"]),
    )
    file = file_with(tmp_path_factory.mktemp("values"), "config.json", json.dumps(config_file(config)))
    assert parse(DigitSums, [str(file)]) == config


def test_a_files_preset_has_that_presets_defaults_below_its_options(tmp_path: Path):
    file = file_with(tmp_path, "a.toml", 'preset = "8B"\nsteps = 3\n')
    config = parse(GeneralRl, [str(file)])
    assert (config.steps, config.preset, config.model) == (3, "8B", "Qwen/Qwen3-VL-8B-Instruct")
    assert config.prompts_per_step == GeneralRl().large().prompts_per_step


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "stps = 3", "a.toml: there is no option stps: did you mean steps?"),
        ("a.toml", "[optimiser]\neps = 1", "a.toml: there is no option optimiser: did you mean optimizer?"),
        (
            "a.toml",
            "[optimizer]\nlearning_rte = 1",
            "a.toml: there is no option optimizer.learning_rte: did you mean optimizer.learning_rate?",
        ),
        ("a.yaml", "lora: 4", "a.yaml: lora is a section with options of its own, got 4"),
        ("a.toml", "steps = ", "a.toml: Invalid value (at end of document)"),
        ("a.json", "{", "a.json: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("a.yaml", "- 3", "a.yaml must have options with their values, got a list"),
        ("a.yaml", "a: [", "a.yaml: while parsing"),
        ("a.toml", None, "a.toml: No such file or directory"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(tmp_path: Path, name: str, text: str | None, message: str):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError) as error:
        parse(DigitSums, [str(file)])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_option_without_a_near_name_lists_what_there_is(tmp_path: Path):
    file = file_with(tmp_path, "a.toml", "[correction]\nxyz = 1")
    with pytest.raises(ValueError, match=r"there is no option correction.xyz: choose correction\.token_cap, "):
        parse(DigitSums, [str(file)])


def test_flags_lists_and_texts_become_words():
    options = {"learner": {"offload": True}, "check_references": False, "lora": {"parts": ["language"]}, "model": "-x"}
    assert command_line_of(options, TrainConfig, Path("a")) == [
        "--learner.offload",
        "--no-check-references",
        "--lora.parts",
        "language",
        "--model=-x",
    ]


def test_a_recipes_script_lies_beside_the_file_that_names_it(tmp_path: Path):
    assert recipe_in(file_with(tmp_path, "a.toml", 'recipe = "mine.py"')) == str(tmp_path / "mine.py")
    assert recipe_in(file_with(tmp_path, "b.toml", 'recipe = "/else/mine.py"')) == "/else/mine.py"


def test_a_file_of_data_is_not_taken_for_a_config_file():
    assert parse(CheckData, ["train.json"]).data == "train.json"


def test_a_file_that_names_no_recipe_does_not_start_one(tmp_path: Path):
    file = file_with(tmp_path, "a.toml", "steps = 3")
    with pytest.raises(ValueError, match='a.toml names no recipe: add one, such as recipe = "digit_sums"'):
        recipe_in(file)
    assert read_config_file(file) == {"steps": 3}
