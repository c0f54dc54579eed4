"""Every published size has a config that works and a plan that fits, made in a moment."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rl.cli import parse
from rl.config import LearnerConfig
from rl.hardware.presets import PRESETS, PresetConfig, preset_plan, with_preset
from rollout.config import RolloutConfig


@dataclass(frozen=True, kw_only=True)
class Recipe(PresetConfig):
    model: str = "cold-start"
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(dtype="float32"))
    rollout: RolloutConfig = field(
        default_factory=lambda: RolloutConfig(dtype="float32", max_tokens=16, max_model_len=128)
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_plan_fits_its_machines_and_takes_no_time(name: str):
    begin = time.process_time()
    config, options, plan = preset_plan(with_preset(Recipe(), name), name)
    assert time.process_time() - begin < 2
    assert plan.fits and not options, plan.problems  # what it needs it sets itself
    assert plan.sequences >= 8  # with fewer at once, an engine is idle most of the time
    assert config.learner.gpus == PRESETS[name].nodes * PRESETS[name].gpus_per_node
    assert config.learner.gpus == config.rollout.num_engines * config.rollout.gpus_per_engine


@pytest.mark.parametrize(("name", "gpus"), [("30B-A3B", 8), ("235B-A22B", 64)])
def test_the_large_ones_fit_the_machines_that_are_asked_for(name: str, gpus: int):
    preset = PRESETS[name]
    assert sum(preset.gpus) == gpus and preset.device_gib == 80


def test_a_plan_knows_that_the_states_of_30b_do_not_fit_beside_the_engines():
    config = with_preset(Recipe(), "30B-A3B")
    config = replace(config, learner=replace(config.learner, offload=False))
    _, options, _ = preset_plan(config, "30B-A3B")
    assert ("learner.offload", True) in [(option.name, option.value) for option in options]


def test_small_is_the_recipes_own():
    assert parse(Recipe, []) == Recipe()


def test_a_preset_on_the_command_line_replaces_defaults_and_options_replace_it():
    config = parse(Recipe, ["--steps", "7", "--preset", "8B", "--rollout.max-tokens", "512"])
    assert (config.preset, config.model, config.steps) == ("8B", "Qwen/Qwen3-VL-8B-Instruct", 7)
    assert (config.rollout.max_tokens, config.rollout.max_model_len) == (512, 20480)
    assert config.learner.gradient_checkpointing and config.learner.dtype == "auto"
    assert (config.group_size, config.optimizer.learning_rate) == (16, 1e-6)  # what a published size is given
    assert parse(Recipe, ["--preset=2B"]).model == "Qwen/Qwen3-VL-2B-Instruct"


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"preset must be one of small, 2B, .*, got '7B'"):
        with_preset(Recipe(), "7B")


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--preset", "7B"], ("7B", "--preset", "235B-A22B")), (["--preset"], ("Missing value", "--preset"))],
)
def test_a_preset_that_there_is_not_is_told_like_any_other_bad_value(
    options: list[str], told: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        parse(Recipe, options)
    words = capsys.readouterr().err
    assert all(each in words for each in told)


def test_the_plan_is_printed_and_nothing_starts(tmp_path: Path):
    recipe = tmp_path / "sized.py"
    recipe.write_text(
        "from dataclasses import dataclass\n"
        "from rl.cli import main\n"
        "from rl.hardware.presets import PresetConfig\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Sized(PresetConfig):\n"
        "    model: str = 'cold-start'\n"
        "def run(config):\n"
        "    raise AssertionError('it ran')\n"
        "main(run, Sized)\n"
    )
    environment = {"COLUMNS": "160", "PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "/usr/bin:/bin"}
    told = {}
    for preset in ("235B-A22B", "small"):
        done = subprocess.run(
            [sys.executable, recipe, "--preset", preset, "--plan"], capture_output=True, text=True, env=environment
        )
        told[preset] = done.returncode, done.stdout + done.stderr
    code, words = told["235B-A22B"]
    assert code == 0, words
    for each in ("8 × 8 GPUs", "learner.gpus", "64", "the learner's state", "fits"):
        assert each in words
    assert told["small"][0] == 2 and "preset small runs on the CPU" in told["small"][1]
