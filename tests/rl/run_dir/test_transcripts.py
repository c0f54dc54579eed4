"""Pictures in samples/ are small copies, in which print can be read; verifiers that work in pixels read them as in the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rewards.trial.recorded import read_groups
from rewards.types import Score
from rl.run_dir.files import jsonl_line
from rl.run_dir.html_report import _picture
from rl.run_dir.transcripts import transcript
from rollout.types import Completion, Group, Observation, Prompt, Turn


def picture(width: int, height: int, original: tuple[int, int] | None = None) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    image.info["original_size"] = original or image.size
    return image


def group(images: list[Image.Image], seen: list[Image.Image] | None = None) -> Group:
    turns = None
    if seen:
        turns = [Turn(text="a", start=0, stop=1, observation=Observation(images=seen)), Turn(text="b", start=1, stop=2)]
    completion = Completion(text="b", turns=turns, token_ids=np.zeros(2, np.int32))
    return Group(
        prompt=Prompt(id="q", messages=[], images=images), prompt_token_ids=np.zeros(1), completions=[completion]
    )


def saved(folder: Path, asked: Group) -> dict[str, object]:
    row = transcript(folder, "step_000001_0", asked, [Score(reward=1.0)])
    (folder / "step_000001.jsonl").write_text(jsonl_line(row))
    return json.loads((folder / "step_000001.jsonl").read_text())


def test_a_large_picture_is_saved_as_a_jpeg_of_a_megapixel_and_a_small_one_exactly(tmp_path: Path):
    # 4000 × 3000 over 1,048,576 pixels are 11.44; their root is 3.383: 1182 × 886.
    row = saved(tmp_path, group([picture(4000, 3000), picture(300, 200)]))
    assert row["images"] == ["step_000001_0_0.jpg", "step_000001_0_1.png"]
    large, small = (Image.open(tmp_path / name) for name in row["images"])
    assert (large.size, small.size) == ((1182, 886), (300, 200))
    assert np.array_equal(np.asarray(small), np.asarray(picture(300, 200)))
    assert (tmp_path / "step_000001_0_0.jpg").stat().st_size < 2e6
    assert row["image_sizes"] == {"step_000001_0_0.jpg": {"size": [4000, 3000], "original_size": [4000, 3000]}}
    assert _picture(tmp_path / "step_000001_0_0.jpg").startswith("<img")


def test_a_row_of_small_pictures_has_no_sizes(tmp_path: Path):
    assert "image_sizes" not in saved(tmp_path, group([picture(512, 512)], seen=[picture(28, 28)]))


def test_small_print_stays_readable(tmp_path: Path):
    page = Image.new("RGB", (1200, 800), "white")
    ImageDraw.Draw(page).text((100, 100), "0.25 mg 3 times a day", fill="black", font_size=12)
    row = saved(tmp_path, group([page]))
    copy = Image.open(tmp_path / row["images"][0])
    enlarged = np.asarray(copy.resize(page.size, Image.Resampling.BICUBIC), float)
    # The letters of one stroke, a pixel wide, still stand out from the page.
    assert (enlarged[95:120, 95:250] < 128).mean() > 0.7 * (np.asarray(page)[95:120, 95:250] < 128).mean()


def test_recorded_pictures_have_the_sizes_that_the_reward_saw_in_the_run(tmp_path: Path):
    shrunk, zoomed = picture(1152, 864, original=(4000, 3000)), picture(2000, 1500)
    saved(tmp_path, group([shrunk, picture(64, 48), picture(96, 64, original=(960, 640))], seen=[zoomed]))
    [read] = read_groups(tmp_path)
    assert [image.size for image in read.prompt.images] == [(1152, 864), (64, 48), (96, 64)]
    originals = [image.info.get("original_size", image.size) for image in read.prompt.images]
    assert originals == [(4000, 3000), (64, 48), (960, 640)]
    [turn, _] = read.completions[0].turns
    assert turn.observation.images[0].size == (2000, 1500)
    assert "image_sizes" not in read.prompt.columns
