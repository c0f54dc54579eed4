"""What a run's end prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.run_dir.summary import print_result
from rl.types import RunResult


def result(run_dir: Path, tasks: dict[str, tuple[float, float]]) -> RunResult:
    seconds = {
        f"time/{phase}": value
        for phase, value in zip(("generate", "score", "learn", "sync", "step"), range(5), strict=True)
    }
    rows = [{"step": 0}, *({"step": step, **seconds} for step in (1, 2, 3))]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, after = (
        {"eval/greedy": 0.25, "eval/blind": 0.5} | {f"eval/{task}/avg": each[when] for task, each in tasks.items()}
        for when in (0, 1)
    )
    return RunResult(run_dir=run_dir, checkpoint=run_dir / "step_3", before=before, after=after | {"eval/greedy": 0.75})


def test_scores_before_and_after_are_printed_of_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(result(tmp_path, {"count": (0.125, 0.5), "box": (0.5, 0.25)}))
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert rows == [
        ["greedy", "0.250", "0.750", "+0.500"],
        ["count: correct, sampled", "0.125", "0.500", "+0.375"],
        ["box: correct, sampled", "0.500", "0.250", "-0.250"],
        ["blind control (grey image)", "0.500", "0.500", "+0.000"],
    ]


def test_a_single_task_is_all_there_is_and_a_step_is_told_by_its_phases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(result(tmp_path, {"default": (0.125, 0.5)}))
    told = capsys.readouterr().out
    assert "default" not in told
    assert "4.00 s per step (median): generate 0.00, score 1.00, learn 2.00, sync 3.00" in told
    assert f"checkpoint: {tmp_path}/step_3" in told.replace("\n", "")
