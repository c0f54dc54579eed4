"""metrics.jsonl, config.json and samples/: what is there after a run, and after a run that was killed and resumed."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rewards.types import Score
from rl.config import TrainConfig, config_dict
from rl.run_dir.files import write_json
from rl.run_dir.tracker import WANDB_ID_FILE, Tracker, keep_rows, read_metrics
from rl.run_dir.transcripts import film_strip
from rollout.types import Completion, Group, Observation, Prompt, Turn, Video
from tests.full_disk import files_of_at_most


def tracker(run_dir: Path, first_row: int = 0, **changed: object) -> Tracker:
    config = TrainConfig(model="small", run_dir=run_dir, wandb="disabled", **changed)
    return Tracker(config, config_dict(config), first_row)


def steps(run_dir: Path) -> list[float]:
    return [row["step"] for row in read_metrics(run_dir)]


def test_each_row_holds_its_step_and_plain_numbers(tmp_path: Path):
    run = tracker(tmp_path)
    run.log(1, {"loss/objective": np.float32(0.25), "rollout/prompts_skipped": 3.0, "policy/version": 1})
    run.log(2, {"loss/objective": float("nan")})
    first, second = read_metrics(tmp_path)
    assert first == {"step": 1, "loss/objective": 0.25, "rollout/prompts_skipped": 3, "policy/version": 1}
    assert math.isnan(second["loss/objective"])
    assert (tmp_path / "metrics.jsonl").read_text().startswith('{"step": 1, "loss/objective": 0.25, "rollout/prompts_')


def test_rows_past_the_checkpoint_are_dropped_on_resume(tmp_path: Path):
    run = tracker(tmp_path)
    for step in (0, 1, 2, 2, 3, 4):  # evaluation adds a row of its own
        run.log(step, {"x": step})
    resumed = tracker(tmp_path, first_row=3)
    assert steps(tmp_path) == [0, 1, 2, 2]
    resumed.log(3, {"x": 3})
    assert steps(tmp_path) == [0, 1, 2, 2, 3]


def test_a_run_from_the_start_drops_all_rows(tmp_path: Path):
    tracker(tmp_path).log(0, {"x": 1})
    tracker(tmp_path)
    assert steps(tmp_path) == []


@pytest.mark.parametrize("rest", ['{"step": 3, "loss/obj', '{"step": 3', "{"])
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, rest: str):
    run = tracker(tmp_path)
    for step in (1, 2):
        run.log(step, {"x": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    tracker(tmp_path, first_row=3).log(3, {"x": 3})
    assert read_metrics(tmp_path) == [{"step": 1, "x": 1}, {"step": 2, "x": 2}, {"step": 3, "x": 3}]


def test_without_a_metrics_file_there_is_nothing_to_keep(tmp_path: Path):
    keep_rows(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_config_is_written_as_it_was_chosen(tmp_path: Path):
    tracker(tmp_path, tau_neg=1.1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["tau_neg"], config["run_dir"], config["optimizer"]["betas"]) == (1.1, str(tmp_path), [0.9, 0.99])


def test_json_is_whole_or_not_there(tmp_path: Path):
    write_json(tmp_path / "config.json", {"a": 1})
    with pytest.raises(ValueError):
        circular: dict = {}
        circular["a"] = circular
        write_json(tmp_path / "config.json", circular)
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}


def test_samples_hold_what_was_asked_answered_and_scored_with_its_images(tmp_path: Path):
    pictures = [Image.new("RGB", (64, 32), color) for color in ("red", "blue")]
    group = Group(
        prompt=Prompt(
            id="q-1",
            messages=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "sum?"}]}],
            images=pictures,
            answer="3+5=8",
            task="digit_sums",
            columns={"sum": 8, "image": pictures[0], "digits": [3, 5]},
        ),
        prompt_token_ids=np.zeros(3, np.int32),
        completions=[
            Completion(text="3+5=8", policy_version=4, token_ids=np.zeros(6, np.int32)),
            Completion(text="3+", finish_reason="length", token_ids=np.zeros(2, np.int32)),
        ],
    )
    scores = [Score(reward=1.0, parts={"terms": 1.0}), Score(reward=0.0, error="no number")]
    tracker(tmp_path).save_samples("step_000004", [group], [scores])
    [row] = [json.loads(line) for line in (tmp_path / "samples" / "step_000004.jsonl").read_text().splitlines()]
    assert (row["prompt_id"], row["task"], row["answer"]) == ("q-1", "digit_sums", "3+5=8")
    assert row["columns"] == {"sum": 8, "digits": [3, 5]}  # for `rewards.check`; pictures are files
    assert row["messages"][0]["content"][1]["text"] == "sum?"
    right, wrong = row["completions"]
    assert (right["text"], right["reward"], right["parts"], right["error"]) == ("3+5=8", 1.0, {"terms": 1.0}, None)
    assert (right["finish_reason"], right["policy_version"]) == ("stop", 4)
    assert (right["num_tokens"], wrong["num_tokens"]) == (6, 2)
    assert (wrong["text"], wrong["reward"], wrong["error"], wrong["finish_reason"]) == (
        "3+",
        0.0,
        "no number",
        "length",
    )
    assert row["images"] == ["step_000004_0_0.png", "step_000004_0_1.png"]
    for name, picture in zip(row["images"], pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "samples" / name)), np.asarray(picture))


def test_of_an_episode_each_turn_names_the_pictures_that_it_was_shown(tmp_path: Path):
    shown = [Observation(text="look", images=[Image.new("RGB", (4, 4), c) for c in colors]) for colors in (["red"], [])]
    turns = [
        Turn(text="za", start=0, stop=2, observation=shown[0]),
        Turn(text="zb", start=2, stop=4, observation=shown[1]),
        Turn(text="7", start=4, stop=5),
    ]
    episode = Completion(text="7", turns=turns, outcome={"won": True}, token_ids=np.zeros(5, np.int32))
    group = Group(prompt=Prompt(id="q", messages=[]), prompt_token_ids=np.zeros(1), completions=[episode])
    tracker(tmp_path).save_samples("step_000001", [group], [[Score(reward=1.0)]])
    [row] = [json.loads(line) for line in (tmp_path / "samples" / "step_000001.jsonl").read_text().splitlines()]
    [told] = row["completions"]
    assert told["turns"] == [
        {"text": "za", "start": 0, "stop": 2, "observation": "look", "images": ["step_000001_0_seen_0_0.png"]},
        {"text": "zb", "start": 2, "stop": 4, "observation": "look", "images": []},
        {"text": "7", "start": 4, "stop": 5},
    ]
    assert told["num_tokens"] == 5
    assert told["outcome"] == {"won": True}
    assert Image.open(tmp_path / "samples" / "step_000001_0_seen_0_0.png").getpixel((0, 0)) == (255, 0, 0)


def test_a_video_is_shown_as_a_strip_of_five_of_its_frames(tmp_path: Path):
    frames = np.zeros((9, 64, 96, 3), np.uint8) + np.arange(0, 90, 10, dtype=np.uint8)[:, None, None, None]
    video = Video(frames=frames, fps=2.0, frame_indices=range(9))
    group = Group(prompt=Prompt(id="q", messages=[], videos=[video]), prompt_token_ids=np.zeros(1), completions=[])
    tracker(tmp_path).save_samples("step_000001", [group], [[]])
    [row] = [json.loads(line) for line in (tmp_path / "samples" / "step_000001.jsonl").read_text().splitlines()]
    assert (row["images"], row["videos"]) == ([], ["step_000001_0_video_0.png"])
    strip = np.asarray(Image.open(tmp_path / "samples" / row["videos"][0]))
    assert strip.shape == (128, 5 * 192, 3)  # twice as high and as wide
    assert [int(strip[64, 192 * place + 96, 0]) for place in range(5)] == [0, 20, 40, 60, 80]


def test_a_short_video_is_shown_whole():
    video = Video(frames=np.zeros((2, 3, 300, 3), np.uint8), fps=2.0, frame_indices=(0, 1))
    assert film_strip(video, height=1).size == (2 * 100, 1)


def test_only_the_first_groups_of_a_step_are_shown(tmp_path: Path):
    groups = [
        Group(prompt=Prompt(id=f"q-{i}", messages=[], answer=object()), prompt_token_ids=np.zeros(1), completions=[])
        for i in range(9)
    ]
    tracker(tmp_path).save_samples("step_000001", groups, [[] for _ in groups], limit=2)
    rows = [json.loads(line) for line in (tmp_path / "samples" / "step_000001.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == ["q-0", "q-1"]
    assert rows[0]["answer"].startswith("<object")  # whatever an answer is, it is shown


def test_without_a_terminal_the_first_and_every_tenth_step_print_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    metrics = {
        "reward/mean": 0.625,
        "rollout/logprob_gap_mean": 2e-7,
        "rollout/tokens_per_second": 321.4,
        "time/step": 1.5,
    }
    with tracker(tmp_path).progress(total=20, done=0) as bar:
        for step in range(1, 21):
            bar.advance(step, metrics)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ") and "/20" not in line]
    assert [line.split()[1] for line in lines] == ["1", "10", "20"]
    assert "reward 0.625  gap 2.0e-07  321 tok/s  1.50 s/step" in lines[0]


def test_wandb_keeps_offline_runs_in_the_runs_folder_under_one_id_for_a_resumed_run(tmp_path: Path):
    config = TrainConfig(model="small", run_dir=tmp_path / "run", wandb="offline")
    for first_row, steps in ((0, (1, 2, 3)), (3, (3, 4))):
        tracker = Tracker(config, config_dict(config), first_row)
        for step in steps:
            tracker.log(step, {"reward/mean": 0.5})
        assert tracker.wandb.summary["step"] == steps[-1]
        tracker.close()
        time.sleep(1.1)  # wandb names a folder by the second
    name = (tmp_path / "run" / WANDB_ID_FILE).read_text().strip()
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(f"-{name}") for folder in folders)
    assert all(any(folder.glob(f"run-{name}.wandb")) for folder in folders)


def test_rows_that_a_full_disk_has_no_room_for_are_written_later(tmp_path: Path, caplog):
    run = tracker(tmp_path)
    run.log(1, {"x": 1})
    with files_of_at_most((tmp_path / "metrics.jsonl").stat().st_size + 10):  # half of a row
        run.log(2, {"x": 2})
        run.log(3, {"x": 3})
        assert steps(tmp_path) == [1]
    assert "metrics of step 2 are not written so far" in caplog.text
    run.log(4, {"x": 4})
    assert read_metrics(tmp_path) == [{"step": step, "x": step} for step in (1, 2, 3, 4)]


def test_samples_that_cannot_be_written_cost_a_warning(tmp_path: Path, caplog):
    run = tracker(tmp_path)
    (tmp_path / "samples").write_text("a file")
    run.save_samples("step_3", [], [])
    assert "no samples of step_3" in caplog.text
