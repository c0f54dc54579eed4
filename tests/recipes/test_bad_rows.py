"""A run over data of which one row of each kind is bad: real Ray, a real engine, fp32."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rl import train
from rl.config import EvalConfig, LearnerConfig, OptimizerConfig, RolloutConfig, TrainConfig
from rollout import Completion, Prompt
from rollout.data.datasets import read_rows
from rollout.data.prompts import Prompts, column_mapping, prompts_from

pytestmark = pytest.mark.engine

BAD: dict[str, dict[str, Any]] = {
    "a lone surrogate": {"question": "\ud800?"},
    "no question": {"question": None},
    "no such picture": {"question": "?", "image": "none.png"},
    "no picture": {"question": "?", "image": "page.png"},
    "an address": {"question": "?", "image": "https://example.org/a.png"},
    "more placeholders than pictures": {"question": "<image><image>?", "image": "good.png"},
    "too long": {"question": "x" * 500},
    "the mapping fails": {"question": "?", "answer": None},
}


def half_of_digits(prompt: Prompt, completion: Completion) -> float:
    return sum(letter.isdigit() for letter in completion.text) / (1 + len(completion.text))


def to_prompt(row: dict[str, Any]) -> Prompt:
    return column_mapping()({**row, "answer": row["answer"].strip()})


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    Image.new("RGB", (64, 32), "red").save(tmp_path / "good.png")
    (tmp_path / "page.png").write_text("<html>Not found</html>")
    good = [{"question": f"<image>{number}?", "image": "good.png", "answer": "1"} for number in range(4)]
    bad = [{"image": None, "answer": "1"} | row for row in BAD.values()]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in good + bad))
    return prompts_from(read_rows(path), to_prompt)


def run(policy: Path, run_dir: Path, prompts: Prompts, steps: int) -> list[dict[str, Any]]:
    config = TrainConfig(
        model=str(policy),
        run_dir=run_dir,
        steps=steps,
        prompts_per_step=2,
        group_size=2,
        num_minibatches=1,
        checkpoint_every=5,
        resume="auto",
        wandb="disabled",
        check_references=False,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_updates=1),
        learner=LearnerConfig(dtype="float32", threads=1),
        rollout=RolloutConfig(dtype="float32", max_tokens=8, max_model_len=128),
        eval=EvalConfig(num_prompts=0),
    )
    train(config, prompts=prompts, reward=half_of_digits)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_bad_rows_are_skipped_and_named_and_the_run_ends_and_resumes(
    cluster: None, dense_policy: Path, prompts: Prompts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = run(dense_policy, tmp_path / "run", prompts, 10)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped ")]
    assert [row["step"] for row in rows if row["step"]] == list(range(1, 11))
    # In ten steps of two prompts, 4 of 12 good, every row is drawn more than once.
    assert rows[-1]["rollout/prompts_skipped"] >= len(BAD)
    assert 5 <= len(told) <= 7 and max(map(len, told)) < 400
    named = {int(re.search(r"row[ -](\d+)", line)[1]) for line in told[:5]}
    assert len(named) == 5 and named <= set(range(4, 12))
    rows = run(dense_policy, tmp_path / "run", prompts, 12)
    assert [row["step"] for row in rows if row["step"]] == list(range(1, 13))
