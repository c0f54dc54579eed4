"""Episodes with pictures between their turns, ahead of the learner, with refills, stopped and resumed: real Ray and vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.running import ONE_THREAD, run_here

pytestmark = pytest.mark.engine


def run(run_dir: Path, *more: str) -> None:
    """The zoom recipe, small: a cold start that has just learnt the format."""
    options = "--cold-start.updates 60 --eval.num-prompts 8 --checkpoint-every 2 --samples-every 1 --wandb disabled"
    sizes = "--prompts-per-step 4 --group-size 4 --max-staleness 1 --refill-prompts 2 --optimizer.learning-rate 1e-3"
    where = f"--cold-start.cache-dir {run_dir.parent / 'cold_start'} --run-dir {run_dir}"
    run_here("zoom", [*f"{options} {sizes} {ONE_THREAD} {where}".split(), *more])


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_episodes_generated_ahead_agree_with_the_learner_and_resume(cluster: None, tmp_path: Path) -> None:
    run_dir = tmp_path / "zoom"
    run(run_dir, "--steps", "2")
    run(run_dir, "--steps", "4", "--resume", "auto")
    steps = rows(run_dir)
    assert [row["step"] for row in steps] == [0, 1, 2, 3, 4]
    assert {"eval/greedy", "eval/sampled", "eval/blind"} <= steps[0].keys() & steps[4].keys()
    for row in steps[1:]:
        assert 1 < row["rollout/turns"] <= 2
        assert row["policy/grad_norm"] > 0
        assert row["rollout/refills"] <= 2 and row["policy/version"] == row["step"]
        assert row["reward/looked_right"] <= row["reward/looked"] <= 1
    # The first step of each process has nothing older to learn from; what comes next was begun a version earlier.
    assert [steps[1]["rollout/staleness"], steps[3]["rollout/staleness"]] == [0, 0]
    assert all(0 < steps[step]["rollout/staleness"] <= 1 for step in (2, 4))
    assert all(steps[step]["rollout/logprob_gap_max"] <= 1e-5 for step in (1, 3))
    shown = [
        (turn["text"], turn["images"])
        for line in (run_dir / "samples" / "step_000004.jsonl").read_text().splitlines()
        for completion in json.loads(line)["completions"]
        for turn in completion["turns"]
        if "images" in turn
    ]
    assert shown and all((run_dir / "samples" / image).is_file() for _, images in shown for image in images)
