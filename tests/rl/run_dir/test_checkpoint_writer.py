"""Checkpoints are written while training goes on. What fails costs a warning and another try, never an earlier checkpoint."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file

from rl.config import TrainConfig
from rl.run_dir.checkpoint import find_checkpoint, list_checkpoints, set_aside, starting_point
from rl.run_dir.checkpoint_writer import CheckpointWriter
from rl.run_dir.sums import SUMS_FILE, damage_of
from rl.types import LearnerFailed, RunStopped
from tests.checkpoints import OneWeight, state_of, write_checkpoints
from tests.full_disk import files_of_at_most


@pytest.fixture
def options(tmp_path: Path) -> TrainConfig:
    return TrainConfig(model="unused", run_dir=tmp_path, steps=100, checkpoint_every=10, keep_checkpoints=0)


def steps(options: TrainConfig) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(options.run_dir)]


def test_the_sums_are_those_that_sha256sum_checks(options: TrainConfig):
    folder = write_checkpoints(options, 10, learner=OneWeight(num_ranks=3))
    checked = subprocess.run(["sha256sum", "--check", SUMS_FILE], cwd=folder, capture_output=True, text=True)
    files = ["config.json", "loop.json", "model-0.safetensors", "model-1.safetensors", "model-2.safetensors"]
    assert checked.stdout.splitlines() == [f"{name}: OK" for name in files]
    assert sorted(path.name for path in folder.iterdir()) == [SUMS_FILE, *files]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name", "text"),
    [
        (cut, "model-0.safetensors", "model-0.safetensors differs from its SHA-256 sum"),
        (flip, "model-0.safetensors", "model-0.safetensors differs from its SHA-256 sum"),
        (flip, "loop.json", "loop.json differs from its SHA-256 sum"),
        (Path.unlink, "config.json", "config.json: No such file or directory"),
        (Path.unlink, SUMS_FILE, "has no SHA256SUMS: an older version wrote it, or it is incomplete"),
        (lambda file: file.write_text(""), SUMS_FILE, "SHA256SUMS is empty"),
        (lambda file: file.write_bytes(b"\xff\x00"), SUMS_FILE, "SHA256SUMS is not a list of sums"),
        (
            lambda file: file.write_text(f"{'0' * 64}  ../../other\n"),
            SUMS_FILE,
            "SHA256SUMS names ../../other, which is",
        ),
    ],
    ids=["cut", "a bit", "the loop's state", "a file lost", "no sums", "empty sums", "no text", "a path outside"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(options: TrainConfig, caplog, damage, name, text):
    before, newest = write_checkpoints(options, 10), write_checkpoints(options, 20)
    damage(newest / name)
    assert find_checkpoint(options.run_dir, "auto") == before
    (record,) = caplog.records
    assert text in record.getMessage() and "step_20" in record.getMessage()
    with pytest.raises(ValueError, match="step_20"):
        find_checkpoint(options.run_dir, str(newest))

    # The run goes on from step 10, and writes step 20 again.
    assert starting_point(replace(options, resume="auto"))[1].step == 10
    set_aside(options.run_dir, after=10)
    assert steps(options) == [10]
    assert (newest.parent / "damaged_step_20").is_dir()


def test_without_a_whole_checkpoint_a_run_does_not_start_anew(options: TrainConfig):
    for step in (10, 20):
        flip(write_checkpoints(options, step) / "model-0.safetensors")
    with pytest.raises(
        ValueError, match=r"no checkpoint is whole: .*step_20 is damaged.*step_10 is damaged.*Move them"
    ):
        find_checkpoint(options.run_dir, "auto")


def test_a_quick_check_leaves_out_the_files_of_weights(options: TrainConfig):
    folder = write_checkpoints(options, 10)
    flip(folder / "model-0.safetensors")
    assert damage_of(folder, quick=True) == "" != damage_of(folder)
    flip(folder / "config.json")
    assert damage_of(folder, quick=True) == "config.json differs from its SHA-256 sum"


def test_a_checkpoint_has_the_weights_of_its_step_whatever_training_does_meanwhile(options: TrainConfig):
    go_on = Event()
    learner = OneWeight(before=lambda folder: go_on.wait(10))
    writer = CheckpointWriter(options, learner, None)
    learner.weight[0] = 1.0
    writer.begin(state_of(options, 10))
    learner.weight[0] = 2.0  # training has gone on, and the checkpoint is not written
    assert not writer.is_due(11) and steps(options) == []
    go_on.set()
    folder = writer.finish()
    assert load_file(folder / "model-0.safetensors")["weight"] == 1.0


class FullDisk:
    """Fails the first tries to write, as a full disk does."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    def __call__(self, folder: Path) -> None:
        if self.left:
            self.left -= 1
            raise OSError(28, "No space left on device")


def test_a_full_disk_costs_a_warning_and_later_tries_and_no_earlier_checkpoint(options: TrainConfig, caplog):
    options = replace(options, keep_checkpoints=1)
    first = write_checkpoints(options, 10)
    writer = CheckpointWriter(options, OneWeight(before=FullDisk(3)), None)
    tried = []
    for step in range(20, 41):
        if writer.is_due(step):
            tried.append(step)
            writer.begin(state_of(options, step))
            writer._thread.join()
            assert steps(options) == ([10] if step < 27 else [27] if step < 30 else [step])
    # After 1, 2 and 4 steps; then as planned.
    assert tried == [20, 21, 23, 27, 30, 40]
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 3 and "no checkpoint of step 20: rank 0: OSError: [Errno 28] No space left" in texts[0]
    assert not first.exists() and [path.name for path in first.parent.iterdir()] == ["step_40"]


def test_an_error_of_the_disk_in_the_middle_of_a_file_is_one_of_the_checkpoint(options: TrainConfig, caplog):
    writer = CheckpointWriter(options, OneWeight(), None)
    with files_of_at_most(40):  # the weight's file has 80 bytes: its write ends half way
        writer.begin(state_of(options, 10))
        writer.close()
    assert writer.newest is None and "no checkpoint of step 10: rank 0: " in caplog.text
    writer.begin(state_of(options, 11))
    assert writer.finish().name == "step_11"


def test_a_folder_that_cannot_be_written_does_not_end_the_run(options: TrainConfig, caplog):
    (options.run_dir / "checkpoints").write_text("a file")
    writer = CheckpointWriter(options, OneWeight(), None)
    writer.begin(state_of(options, 10))
    assert "no checkpoint of step 10" in caplog.text and writer.is_due(11)
    (options.run_dir / "checkpoints").unlink()
    writer.begin(state_of(options, 11))
    assert writer.finish().name == "step_11"


def test_one_rank_that_fails_is_named_and_what_the_others_wrote_is_deleted(options: TrainConfig, caplog):
    writer = CheckpointWriter(options, OneWeight(num_ranks=3, before=FullDisk(1)), None)
    writer.begin(state_of(options, 10))
    writer.close()
    assert "rank 0: OSError" in caplog.text
    assert list((options.run_dir / "checkpoints").iterdir()) == []


def test_the_last_checkpoint_is_tried_again_and_then_the_run_ends_with_an_error(options: TrainConfig, monkeypatch):
    monkeypatch.setattr("rl.run_dir.checkpoint_writer.LAST_PAUSE_SECONDS", 0.01)
    assert write_checkpoints(options, 10, learner=OneWeight(before=FullDisk(2))).name == "step_10"
    with pytest.raises(RunStopped, match="the last checkpoint could not be written: what was learned after the start"):
        write_checkpoints(options, 20, learner=OneWeight(before=FullDisk(3)))
    assert steps(options) == [10]


def test_a_rank_that_has_died_is_not_waited_for(options: TrainConfig, monkeypatch, caplog):
    monkeypatch.setattr("rl.run_dir.checkpoint_writer.CLOSE_SECONDS", 0.1)
    learner = OneWeight()
    learner.num_ranks = 2  # the second one never writes
    monkeypatch.setattr(learner, "save", lambda folder, background: OneWeight().save(folder))
    writer = CheckpointWriter(options, learner, None)
    writer.begin(state_of(options, 10))
    writer.close()
    assert "its ranks have not written it" in caplog.text and steps(options) == []


def test_a_learner_that_dies_ends_its_checkpoint_and_the_next_learner_writes_another(options: TrainConfig, caplog):
    learner = OneWeight()
    learner.num_ranks = 2
    writer = CheckpointWriter(options, learner, None)
    writer.note(state_of(options, 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "save", lambda folder, background: OneWeight().save(folder))
        patch.setattr(learner, "check", Mock(side_effect=LearnerFailed("rank 1 of the learner: a worker process died")))
        writer.save()
        writer.forget()
    assert "no checkpoint of step 10: rank 1 of the learner: a worker process died" in caplog.text
    assert not any(writer.is_due(step) for step in range(11, 20))
    writer.save()  # nothing is noted: the state of step 10 is lost with the learner
    writer.note(state_of(options, 10))
    writer.save()
    assert writer.finish().name == "step_10"
    assert [path.name for path in (options.run_dir / "checkpoints").iterdir()] == ["step_10"]


def test_the_best_checkpoint_is_kept_beside_the_newest(options: TrainConfig, caplog):
    options = replace(options, keep_checkpoints=1, keep_best="eval/greedy")
    writer = CheckpointWriter(options, OneWeight(), None)
    kept = []
    for step, score in ((10, 0.5), (20, 0.7), (30, None), (40, 0.7), (50, 0.6)):
        writer.begin(state_of(options, step, {} if score is None else {"eval/greedy": score}))
        writer.finish()
        kept.append(steps(options))
    assert kept == [[10], [20], [20, 30], [40], [40, 50]]  # of equal ones the newest
    (record,) = caplog.records
    assert record.getMessage() == "keep_best = eval/greedy: step 30 has no such metric so far"


def test_the_hook_gets_each_whole_checkpoint_and_its_errors_are_logged(options: TrainConfig, tmp_path: Path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "hook.py").write_text(
        "def upload(folder):\n"
        "    assert (folder / 'SHA256SUMS').is_file()\n"
        "    with (folder.parent.parent / 'uploaded').open('a') as file:\n"
        "        file.write(folder.name + ' ')\n"
        "    if folder.name == 'step_20':\n"
        "        raise ConnectionError('no network')\n"
    )
    write_checkpoints(replace(options, after_checkpoint=f"{tmp_path / 'hook.py'}:upload"), 10, 20, 30)
    assert (tmp_path / "uploaded").read_text() == "step_10 step_20 step_30 "
    (record,) = caplog.records
    assert record.getMessage() == "after step_20: ConnectionError: no network"


def test_the_command_lists_checkpoints_with_their_metric_and_what_is_damaged(options: TrainConfig):
    writer = CheckpointWriter(options, OneWeight(), None)
    for step, score in ((10, 0.5), (20, 0.75)):
        writer.begin(state_of(options, step, {"eval/greedy": score}))
    flip(writer.finish() / "model-0.safetensors")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rl.checkpoints", str(options.run_dir), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "150"})

    listed = run()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in listed.stdout.splitlines() if "│" in line]
    assert rows == [
        ["10", "0.000", "0.5", "whole"],
        ["20", "0.000", "0.75", "damaged: model-0.safetensors differs from its SHA-256 sum"],
    ]
    assert listed.returncode == 1
    assert run("--quick").returncode == 0


def test_a_signal_saves_the_state_after_the_last_step_once(options: TrainConfig):
    writer = CheckpointWriter(options, OneWeight(), None)
    for step in (11, 20):
        writer.note(state_of(options, step))
        if writer.is_due(step):
            writer.save()
    with pytest.raises(KeyboardInterrupt), writer.saved_at_a_stop():
        raise KeyboardInterrupt
    writer.close()
    assert steps(options) == [20], "that of the last step is there"
    writer.note(state_of(options, 23))
    with pytest.raises(KeyboardInterrupt), writer.saved_at_a_stop():
        raise KeyboardInterrupt
    writer.close()
    assert steps(options) == [20, 23]


def test_before_the_first_step_a_signal_saves_nothing(options: TrainConfig):
    writer = CheckpointWriter(options, OneWeight(), None)
    with pytest.raises(KeyboardInterrupt), writer.saved_at_a_stop():
        raise KeyboardInterrupt
    writer.close()
    assert steps(options) == []


def test_an_unexpected_error_of_the_thread_is_one_of_the_checkpoint(options: TrainConfig, monkeypatch, caplog):
    writer = CheckpointWriter(options, OneWeight(), None)
    with monkeypatch.context() as patch:
        patch.setattr("rl.run_dir.checkpoint_writer.complete", lambda *arguments: {}["not there"])
        writer.begin(state_of(options, 10))
        writer.close()
    assert "no checkpoint of step 10: 'not there'" in caplog.text and writer.is_due(11)
