"""A distillation from its start to its resume: real Ray, two real vLLM engines, fp32."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
    command = [
        sys.executable,
        "-m",
        "recipes.distill",
        *f"{options} {sizes} {cache} --run-dir {run_dir}".split(),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(UNEQUAL) and "per_second" not in k} for row in rows]


def test_a_distillation_has_a_teachers_word_on_every_token_and_resumes_to_the_same_numbers(tmp_path: Path):
    rows = distill(tmp_path / "undisturbed")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["policy/teacher_kl"] > 0.01 and row["policy/grad_norm"] > 0 for row in rows)
    assert all(row["rollout/teacher_failures"] == 0 for row in rows)
    assert all(row["rollout/logprob_gap_max"] <= 1e-5 for row in rows)
    # The reward is 0 throughout: it is the teacher alone that moves the student.
    checkpoint = tmp_path / "undisturbed" / "checkpoints" / "step_2"
    [resumed] = distill(tmp_path / "resumed", "--resume", str(checkpoint))
    assert resumed == rows[2]
