"""A run whose watchdog raises an alarm goes back, changes its options and goes on; a later resume keeps to them. Real engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rl.run
from rl.run_dir.checkpoint import checkpoint_steps
from rl.run_dir.rollback import read_rollbacks
from rl.watchdog import Alarm
from tests.recipes.running import ONE_THREAD, run_here

pytestmark = pytest.mark.engine

ALARM_AT = 4


class OneAlarm:
    """A watchdog that raises one alarm, in the first attempt at a step."""

    raised = False

    def __init__(self, rows: Any = ()) -> None:
        self.seen = [row["step"] for row in rows]

    def watch(self, step: int, metrics: dict[str, float]) -> Alarm | None:
        self.seen.append(step)
        if step != ALARM_AT or OneAlarm.raised:
            return None
        OneAlarm.raised = True
        return Alarm(step=step, good_until=3, text="step 4: a sign")


def words(run_dir: Path, *more: str) -> list[str]:
    options = "--cold-start.updates 4 --eval.num-prompts 4 --wandb disabled --prompts-per-step 4 --group-size 2"
    when = "--checkpoint-every 2 --num-minibatches 4 --watchdog.action rollback"
    cache = f"--cold-start.cache-dir {run_dir.parent / 'cold_start'} --run-dir {run_dir}"
    return [*f"{options} {when} {cache} {ONE_THREAD}".split(), *more]


def steps(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_an_alarm_sends_the_run_back_with_careful_options(tmp_path: Path, cluster, monkeypatch, caplog):
    monkeypatch.setattr(rl.run, "Watchdog", OneAlarm)
    monkeypatch.setattr(OneAlarm, "raised", False)
    run_dir = tmp_path / "run"
    run_here("digit_sums", words(run_dir, "--steps", "5"))
    (rollback,) = read_rollbacks(run_dir)
    assert (rollback.step, rollback.to, rollback.reason) == (ALARM_AT, 2, "step 4: a sign")
    changes = "optimizer.learning_rate = 5e-05, correction.off_policy_threshold = 0.1, num_minibatches = 1"
    assert f"back to step 2, with {changes}" in caplog.text
    assert steps(run_dir / "metrics.jsonl") == [0, 1, 2, 3, 4, 5]
    assert steps(run_dir / "abandoned.jsonl") == [3, 4]
    written = json.loads((run_dir / "config.json").read_text())
    assert (written["num_minibatches"], written["correction"]["off_policy_threshold"]) == (1, 0.1)


def learned(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name.startswith(("policy/", "loss/", "reward/"))} for row in rows[1:]]


def test_a_run_that_ends_after_its_rollback_resumes_to_the_last_digit(tmp_path: Path, cluster, monkeypatch):
    monkeypatch.setattr(rl.run, "Watchdog", OneAlarm)
    for name, parts in {"whole": ["--steps 6"], "resumed": ["--steps 4", "--steps 6 --resume auto"]}.items():
        monkeypatch.setattr(OneAlarm, "raised", False)
        for options in parts:
            run_here("digit_sums", words(tmp_path / name, *options.split()))
    assert max(checkpoint_steps(tmp_path / "resumed")) == 6
    assert len(learned(tmp_path / "whole")) == 6
    assert learned(tmp_path / "resumed") == learned(tmp_path / "whole")
