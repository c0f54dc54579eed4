"""A distillation from its start to its resume: real Ray, two real vLLM engines, fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.running import ONE_THREAD, run_here

pytestmark = pytest.mark.engine

UNEQUAL = ("time/", "sync/", "memory/")
"""Metrics that tell of the machine, not of the policy."""


def distill(run_dir: Path, *more: str) -> list[dict[str, Any]]:
    """Three steps of a student that has hardly seen anything, with a teacher that has seen a little more; returns its rows."""
    options = "--steps 3 --cold-start.updates 2 --teacher-start.updates 20 --checkpoint-every 2 --eval.num-prompts 0"
    sizes = "--prompts-per-step 4 --group-size 4 --wandb disabled --optimizer.warmup-updates 2"
    cache = (
        f"--cold-start.cache-dir {run_dir.parent / 'students'} --teacher-start.cache-dir {run_dir.parent / 'teachers'}"
    )
    run_here(
        "distill",
        [*f"{options} {sizes} {ONE_THREAD} --teacher-start.threads 1 {cache} --run-dir {run_dir}".split(), *more],
    )
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(UNEQUAL) and "per_second" not in k} for row in rows]


def test_a_distillation_has_a_teachers_word_on_every_token_and_resumes_to_the_same_numbers(
    cluster: None, tmp_path: Path
):
    rows = distill(tmp_path / "undisturbed")
    checkpoint = tmp_path / "undisturbed" / "checkpoints" / "step_2"
    [resumed] = distill(tmp_path / "resumed", "--resume", str(checkpoint))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["policy/teacher_kl"] > 0.01 and row["policy/grad_norm"] > 0 for row in rows)
    assert all(row["rollout/teacher_failures"] == 0 for row in rows)
    assert all(row["rollout/logprob_gap_max"] <= 1e-5 for row in rows)
    # The reward is 0 throughout: it is the teacher alone that moves the student.
    assert resumed == rows[2]
