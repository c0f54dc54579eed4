"""Rollbacks: what is changed, what is kept, and what a resume makes of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl.config import CorrectionConfig, OptimizerConfig, TrainConfig, WatchdogConfig
from rl.loop import go_back
from rl.run_dir.checkpoint import checkpoint_steps, starting_point
from rl.run_dir.rollback import Rollback, careful_changes, read_rollbacks, with_rollbacks
from rl.types import CollapseAhead, RunStopped
from tests.checkpoints import write_checkpoints


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A run of 40 steps with checkpoints at 10, 20 and 30."""
    config = TrainConfig(model="unused", run_dir=tmp_path, num_minibatches=8, resume="auto")
    rows = [{"step": step, "reward/mean": step / 100} for step in range(1, 35)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (10, 20, 30):
        save(config, step)
    return config


def save(config: TrainConfig, step: int) -> None:
    write_checkpoints(replace(config, keep_checkpoints=0), step)


def alarm(good_until: int) -> CollapseAhead:
    return CollapseAhead("a sign", step=34, good_until=good_until)


def test_the_run_goes_back_to_the_newest_checkpoint_before_the_trouble_began(config: TrainConfig):
    go_back(config, alarm(good_until=25))
    assert list(checkpoint_steps(config.run_dir)) == [10, 20]
    abandoned = [json.loads(line) for line in (config.run_dir / "abandoned.jsonl").read_text().splitlines()]
    assert [(row["rollback"], row["step"]) for row in abandoned] == [(0, step) for step in range(21, 35)]
    checkpoint, state = starting_point(with_rollbacks(config))
    assert (checkpoint, state.step) == (config.run_dir / "checkpoints" / "step_20", 20)


def test_a_rollback_makes_smaller_steps_whenever_the_run_starts(config: TrainConfig):
    go_back(config, alarm(good_until=25))
    changed = with_rollbacks(config)
    assert (changed.num_minibatches, changed.correction.off_policy_threshold) == (2, 0.1)
    assert changed.optimizer.learning_rate == config.optimizer.learning_rate / 2
    changes = {
        "optimizer.learning_rate": config.optimizer.learning_rate / 2,
        "correction.off_policy_threshold": 0.1,
        "num_minibatches": 2,
    }
    assert read_rollbacks(config.run_dir) == [Rollback(step=34, to=20, reason="a sign", changes=changes)]


def test_a_second_rollback_changes_what_the_first_has_left(config: TrainConfig):
    go_back(config, alarm(good_until=25))
    again = with_rollbacks(config)
    save(again, 30)
    go_back(again, alarm(good_until=20))
    assert with_rollbacks(config).num_minibatches == 1
    assert [each.to for each in read_rollbacks(config.run_dir)] == [20, 20]
    rows = [json.loads(line)["rollback"] for line in (config.run_dir / "abandoned.jsonl").read_text().splitlines()]
    assert set(rows) == {0, 1}


def test_a_run_that_never_had_an_earlier_checkpoint_goes_back_to_its_start(config: TrainConfig):
    back = go_back(replace(config, checkpoint_every=10), alarm(good_until=9))
    assert not checkpoint_steps(config.run_dir)
    assert starting_point(with_rollbacks(back))[1].step == 0


def test_a_run_whose_earlier_checkpoint_is_deleted_goes_back_to_the_oldest_one_left(config: TrainConfig):
    go_back(replace(config, checkpoint_every=5), alarm(good_until=9))
    assert list(checkpoint_steps(config.run_dir)) == [10]


def test_without_any_checkpoint_the_run_starts_from_its_policy(config: TrainConfig):
    for folder in checkpoint_steps(config.run_dir).values():
        shutil.rmtree(folder)
    back = go_back(replace(config, resume=None), alarm(good_until=25))
    assert back.resume is None
    assert starting_point(with_rollbacks(back))[1].step == 0


def test_a_run_that_has_gone_back_too_often_stops_with_the_sign(config: TrainConfig):
    config = replace(config, watchdog=WatchdogConfig(max_rollbacks=1))
    go_back(config, alarm(good_until=25))
    with pytest.raises(
        RunStopped, match=r"^a sign; the run has gone back 1 times already \(watchdog.max_rollbacks = 1\)"
    ):
        go_back(config, alarm(good_until=15))
    assert list(checkpoint_steps(config.run_dir)) == [10, 20], "its checkpoints stay"


HALF, MASK = {"optimizer.learning_rate": 5e-5}, {"correction.off_policy_threshold": 0.1}
MASKED = CorrectionConfig(off_policy_threshold=0.5)
VISION = OptimizerConfig(learning_rate=1e-4, vision_learning_rate=1e-5)
FROZEN = OptimizerConfig(learning_rate=1e-4, vision_learning_rate=0.0)
CAREFUL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_minibatches": 11}, {**HALF, **MASK, "num_minibatches": 2}),
    ({"num_minibatches": 1}, {**HALF, **MASK}),
    ({"num_minibatches": 1, "correction": MASKED}, HALF),
    ({"num_minibatches": 2, "correction": MASKED}, {**HALF, "num_minibatches": 1}),
    ({"num_minibatches": 1, "optimizer": VISION}, {**HALF, **MASK, "optimizer.vision_learning_rate": 5e-6}),
    ({"num_minibatches": 1, "optimizer": FROZEN}, {**HALF, **MASK}),
]


@pytest.mark.parametrize(("options", "changes"), CAREFUL)
def test_each_rollback_has_something_left_to_change(options: dict[str, Any], changes: dict[str, Any]):
    config = TrainConfig(**{"model": "unused", "optimizer": OptimizerConfig(learning_rate=1e-4), **options})
    assert careful_changes(config) == changes


def test_an_option_that_no_rollback_has_changed_is_still_compared(config: TrainConfig):
    go_back(config, alarm(good_until=25))
    with pytest.raises(ValueError, match=r"of another config: seed = 7 \(was 0\)"):
        starting_point(with_rollbacks(replace(config, seed=7)))
