"""Checkpoints: a folder named step_N is whole, and a run goes on only where it left off."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipes.digit_sums import DigitSums
from rl.config import EvalConfig, LearnerConfig, OptimizerConfig, TeacherConfig, TrainConfig
from rl.run_dir.checkpoint import (
    LoopState,
    find_checkpoint,
    list_checkpoints,
    load_loop_state,
    starting_point,
)
from rl.run_dir.checkpoint_writer import delete_old
from rl.run_dir.sums import damage_of
from tests.checkpoints import OneWeight, state_of, write_checkpoints

CONFIG = TrainConfig(model="small")
FILES = ["SHA256SUMS", "config.json", "loop.json", "model-0.safetensors"]


def state(step: int) -> LoopState:
    return state_of(CONFIG, step)


def save(run_dir: Path, *steps: int, keep: int = 0, in_use: Path | None = None) -> Path:
    options = replace(CONFIG, run_dir=run_dir, keep_checkpoints=keep)
    return write_checkpoints(options, *steps, in_use=in_use)


def names(run_dir: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run_dir)]


def test_what_was_saved_comes_back(tmp_path: Path):
    folder = save(tmp_path, 7)
    assert folder == tmp_path / "checkpoints" / "step_7"
    assert load_file(folder / "model-0.safetensors")["weight"] == 0
    assert load_loop_state(folder, replace(CONFIG, run_dir=tmp_path)).cursor == state(7).cursor


def test_checkpoints_are_listed_by_number_and_not_by_name(tmp_path: Path):
    save(tmp_path, 10, 9, 100)
    save(tmp_path, 2)
    assert names(tmp_path)[0] == "step_2"
    save(tmp_path, 9, 10, 100)
    assert names(tmp_path) == ["step_2", "step_9", "step_10", "step_100"]


class Killed(BaseException):
    """What a test can do of a SIGKILL."""


def test_a_checkpoint_that_was_cut_short_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 5)

    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("rl.run_dir.parts.write_files", killed)
        with pytest.raises(Killed):
            OneWeight().save(tmp_path / "checkpoints" / ".step_10.tmp")
    assert names(tmp_path) == ["step_5"]
    assert find_checkpoint(tmp_path, "auto") == tmp_path / "checkpoints" / "step_5"
    assert load_loop_state(save(tmp_path, 10), replace(CONFIG, run_dir=tmp_path)).step == 10
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_10", "step_5"]
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "step_10").iterdir()) == FILES


def test_a_folder_without_the_loops_state_is_no_checkpoint(tmp_path: Path):
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / "step_6").mkdir()
    assert names(tmp_path) == ["step_5"]


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path):
    (save(tmp_path, 5) / "old_file").write_text("")
    assert not (save(tmp_path, 5) / "old_file").exists()


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_half_of_it(tmp_path: Path, monkeypatch):
    """Deleting takes the files one by one: whatever is left must not go by the name of a checkpoint."""
    save(tmp_path, 1)

    def killed_half_way(path: Path, **_: object) -> None:
        if (path / "model-0.safetensors").exists():
            (path / "model-0.safetensors").unlink()
            raise Killed

    save(tmp_path, 2)
    monkeypatch.setattr("shutil.rmtree", killed_half_way)
    with pytest.raises(Killed):
        delete_old(replace(CONFIG, run_dir=tmp_path, keep_checkpoints=1), in_use=None)
    assert names(tmp_path) == ["step_2"]
    assert damage_of(list_checkpoints(tmp_path)[0]) == ""


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(1, ["step_15"]), (2, ["step_10", "step_15"]), (0, ["step_5", "step_10", "step_15"])],
)
def test_the_newest_are_kept_and_zero_keeps_all(tmp_path: Path, keep: int, expected: list[str]):
    save(tmp_path, 5, 10, 15, keep=keep)
    assert names(tmp_path) == expected


def test_the_checkpoint_that_a_run_goes_on_from_stays_as_long_as_the_run(tmp_path: Path):
    save(tmp_path, 5, keep=1)
    start = tmp_path / "checkpoints" / "step_5"
    save(tmp_path, 10, 15, keep=1, in_use=start)
    assert names(tmp_path) == ["step_5", "step_15"]
    save(tmp_path, 20, keep=1, in_use=tmp_path / "checkpoints" / "step_15")
    assert names(tmp_path) == ["step_15", "step_20"]


def test_going_back_behind_a_later_checkpoint_of_the_same_run_is_refused_and_elsewhere_allowed(tmp_path: Path):
    save(tmp_path, 10, 20, 30)
    earlier = str(tmp_path / "checkpoints" / "step_10")
    with pytest.raises(ValueError, match=r"goes back to step 10, but .* holds step_30: pass another --run-dir"):
        starting_point(replace(CONFIG, run_dir=tmp_path, resume=earlier))
    checkpoint, found = starting_point(replace(CONFIG, run_dir=tmp_path / "branch", resume=earlier))
    assert str(checkpoint) == earlier
    assert found.step == 10


def test_auto_is_the_newest_checkpoint_or_none(tmp_path: Path):
    assert find_checkpoint(tmp_path, None) is None
    assert find_checkpoint(tmp_path, "auto") is None
    save(tmp_path, 9, 10)
    assert find_checkpoint(tmp_path, "auto") == tmp_path / "checkpoints" / "step_10"
    assert find_checkpoint(tmp_path, None) is None


def test_a_checkpoint_folder_and_the_folder_of_a_run_can_be_named(tmp_path: Path):
    save(tmp_path / "other", 9, 10)
    folder = tmp_path / "other" / "checkpoints" / "step_9"
    assert find_checkpoint(tmp_path / "mine", str(folder)) == folder
    assert find_checkpoint(tmp_path / "mine", str(tmp_path / "other")) == folder.with_name("step_10")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_holds_no_checkpoint_is_named_with_the_remedy(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="no checkpoint there .loop.json is missing.; pass a checkpoints/step_N folder"
    ) as e:
        find_checkpoint(tmp_path, str(tmp_path / name))
    assert str(e.value).startswith(f"--resume {tmp_path / name}: ")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"tau_neg": 1.2}, r"tau_neg = 1.2 \(was None\)"),
        ({"group_size": 4}, r"group_size = 4 \(was 8\)"),
        ({"seed": 1}, r"seed = 1 \(was 0\)"),
        ({"reward": "mine.py:f"}, r"reward = 'mine.py:f' \(was None\)"),
        ({"optimizer": OptimizerConfig(betas=(0.9, 0.95))}, r"optimizer.betas = \[0.9, 0.95\] \(was \[0.9, 0.99\]\)"),
        ({"learner": LearnerConfig(dtype="float32")}, r"learner.dtype = 'float32' \(was 'auto'\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_config_is_refused_with_the_field_and_both_values(tmp_path: Path, changed: dict, expected: str):
    folder = save(tmp_path, 5)
    with pytest.raises(
        ValueError, match=f"is of another config: {expected}; pass the old values, or start a new run"
    ) as e:
        load_loop_state(folder, replace(CONFIG, **changed))
    assert str(folder) in str(e.value)


def test_every_difference_is_named(tmp_path: Path):
    changed = replace(CONFIG, tau_pos=0.9, num_minibatches=4, steps=7)
    with pytest.raises(ValueError, match=r"num_minibatches = 4 \(was 2\), tau_pos = 0.9 \(was None\); pass"):
        load_loop_state(save(tmp_path, 5), changed)


@pytest.mark.parametrize(("now", "difference"), [(DigitSums(model="small"), "num_digits = 3 (was None)")])
def test_options_of_a_recipe_that_came_or_went_are_differences_too(tmp_path: Path, now: TrainConfig, difference: str):
    folder = save(tmp_path, 5)
    with pytest.raises(ValueError, match=re.escape(difference)):
        load_loop_state(folder, now)
    loop = json.loads((folder / "loop.json").read_text())
    (folder / "loop.json").write_text(json.dumps(loop | {"config": loop["config"] | {"num_digits": 2}}))
    with pytest.raises(ValueError, match=r"num_digits = None \(was 2\)"):
        load_loop_state(folder, CONFIG)


def test_an_option_newer_than_the_checkpoint_had_its_first_default_and_not_the_recipes(tmp_path: Path):
    folder = save(tmp_path, 5)
    loop = json.loads((folder / "loop.json").read_text())
    del loop["config"]["optimizer"]["decay_updates"]
    (folder / "loop.json").write_text(json.dumps(loop))
    assert load_loop_state(folder, CONFIG).step == 5
    falls = replace(CONFIG, optimizer=OptimizerConfig(decay_updates=400))  # as digit_sums has it
    with pytest.raises(ValueError, match=r"optimizer.decay_updates = 400 \(was 0\)"):
        load_loop_state(folder, falls)


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 1000},
        {"run_dir": Path("elsewhere")},
        {"resume": "auto"},
        {"model": "a/checkpoint"},
        {"checkpoint_every": 1, "keep_checkpoints": 9},
        {"wandb": "disabled"},
        {"samples_every": 1},
        {"eval": EvalConfig(every=5)},
        {"learner": LearnerConfig(threads=7)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_choices_that_do_not_change_what_is_learnt_may_change(tmp_path: Path, changed: dict):
    assert load_loop_state(save(tmp_path, 5), replace(CONFIG, **changed)).step == 5


def test_a_checkpoint_from_before_an_option_was_there_has_its_default(tmp_path: Path):
    folder = save(tmp_path, 5)
    old = json.loads((folder / "loop.json").read_text())
    del old["config"]["teacher"], old["config"]["learner"]["offload"], old["config"]["kl_coefficient"]
    (folder / "loop.json").write_text(json.dumps(old))
    assert load_loop_state(folder, CONFIG).step == 5
    with pytest.raises(ValueError, match=r"kl_coefficient = 0.1 \(was 0.0\), teacher.coefficient = 2.0 \(was 1.0\)"):
        changed = replace(CONFIG, kl_coefficient=0.1, teacher=TeacherConfig(model="large", coefficient=2.0))
        load_loop_state(folder, changed)


def test_another_folder_for_the_teacher_goes_on_and_another_weight_of_its_word_does_not(tmp_path: Path):
    folder = save(tmp_path, 5)
    assert load_loop_state(folder, replace(CONFIG, teacher=TeacherConfig(model="moved"))).step == 5
    with pytest.raises(ValueError, match=r"teacher.reward_weight = 1.0 \(was 0.0\)"):
        load_loop_state(folder, replace(CONFIG, teacher=TeacherConfig(model="moved", reward_weight=1.0)))
