"""The comparison of a disturbed run with an undisturbed one finds every difference that the bench is for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bench.chaos.__main__ import Event, differences, table_of
from bench.chaos.disk import SmallDisk
from bench.chaos.faults import FAULTS

ROWS = [{"step": step, "loss/objective": 0.5 / (step + 1), "time/step": 1.0} for step in range(3)]


def write(folder: Path, rows: Sequence[Mapping[str, float]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compares these rows with `ROWS`; the last checkpoint has `damage`."""
    undisturbed = write(tmp_path / "undisturbed", ROWS)

    def compare(rows: Sequence[Mapping[str, float]], damage: str = "it is damaged") -> list[str]:
        monkeypatch.setattr("bench.chaos.__main__.damage_of", lambda folder: damage)
        *found, last = differences(undisturbed, write(tmp_path / "disturbed", rows), 2)
        assert last.endswith(f"disturbed/checkpoints/step_2: {damage}")
        return found

    return compare


def test_what_depends_on_the_machine_and_the_number_of_failures_may_differ(compare):
    assert compare([{**row, "time/step": 9.0, "policy/learner_failures": 3} for row in ROWS]) == []


def test_a_step_that_is_missing_or_there_twice_is_a_difference(compare):
    assert compare([ROWS[0], ROWS[2], ROWS[2]]) == ["step 2 is there twice", "step 1 is missing"]


def test_a_metric_that_differs_in_the_last_digit_is_a_difference(compare):
    rows = [ROWS[0], {**ROWS[1], "loss/objective": 0.25000000000000006}, ROWS[2]]
    assert compare(rows) == ["step 1: loss/objective is 0.25000000000000006, undisturbed 0.25"]


def test_a_metric_that_only_one_of_them_has_is_a_difference(compare):
    assert compare([*ROWS[:2], {**ROWS[2], "policy/kl": 0.0}]) == ["step 2: policy/kl is 0.0, undisturbed None"]


@pytest.mark.parametrize(("gap", "found"), [(9e-6, 0), (1.2e-5, 3)], ids=["by rounding", "by more"])
def test_the_gap_between_engine_and_learner_may_differ_by_rounding_and_not_by_more(
    compare, tmp_path: Path, gap: float, found: int
):
    with_gap = [{**row, "rollout/logprob_gap_mean": 0.0} for row in ROWS]
    (tmp_path / "undisturbed" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in with_gap))
    assert len(compare([{**row, "rollout/logprob_gap_mean": gap} for row in ROWS])) == found


def test_there_are_more_than_ten_kinds_and_the_table_has_a_row_for_each_that_came():
    assert len(FAULTS) >= 10
    events = [Event(kind=kind, step=1, in_recovery=False, seconds=2.0) for kind in (*FAULTS, "SIGTERM")]
    assert table_of(events).row_count == len(FAULTS)


def test_a_disk_that_is_filled_has_no_room_for_a_byte_and_its_files_stay_when_it_ends(tmp_path: Path):
    disk = SmallDisk(tmp_path / "run", megabytes=2)
    if not disk.is_mounted:
        pytest.skip("only who may mount has a small disk")
    try:
        (tmp_path / "run" / "checkpoints").mkdir()
        for name in ("metrics.jsonl", "checkpoints/weights"):
            (tmp_path / "run" / name).write_text("3")
        disk.fill()
        with pytest.raises(OSError, match="No space left on device"):
            (tmp_path / "run" / "more").write_text("x")
        disk.free()
        (tmp_path / "run" / "more").write_text("x" * 1_000_000)
    finally:
        disk.close()
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["run/metrics.jsonl", "run/more"], "checkpoints are large, and not kept"
