"""Videos of every form become frames with their times; what cannot be one names its row and the reason."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from datasets import Dataset
from datasets import Video as VideoFeature
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rollout.data.media import FrameSampling, UnreadablePrompt
from rollout.data.prompts import column_mapping, prompts_from
from rollout.data.stream import PromptStream
from rollout.types import Video

ALL = FrameSampling(fps=1000.0, max_frames=1000)


def clip(folder: Path, *, num_frames: int = 25, size: tuple[int, int] = (64, 48), ending: str = "mp4") -> Path:
    """A file of 10 frames per second, each of one grey, 10 brighter than the one before; redder in the upper half."""
    path = folder / f"clip_{num_frames}.{ending}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*{"mp4": "mp4v", "avi": "MJPG"}[ending]), 10.0, size)
    for number in range(num_frames):
        frame = np.full((size[1], size[0], 3), 10 * number % 250, np.uint8)
        frame[: size[1] // 2, :, 2] += 5  # blue, green, red
        writer.write(frame)
    writer.release()
    return path


def row(video: object) -> dict[str, object]:
    return {"question": "what happens?", "video": video, "answer": "a"}


def opened(video: object, frames: FrameSampling | None = None) -> Video:
    [prompt] = prompts_from([row(video)], column_mapping(image=None, video="video"), frames)
    [video] = prompt.videos
    return video


def greys(video: Video) -> list[int]:
    """Which frames these are, by their brightness."""
    return [round(float(frame[-8:].mean()) / 10) for frame in video.frames]


def test_a_video_is_seen_twice_a_second_from_its_first_to_its_last_frame(tmp_path: Path):
    video = opened(clip(tmp_path))
    # 2.5 seconds make 5 frames, of 0 to 24.
    assert list(video.frame_indices) == [0, 6, 12, 18, 24]
    assert greys(video) == [0, 6, 12, 18, 24]
    assert (video.fps, video.frames.shape, video.frames.dtype) == (10.0, (5, 48, 64, 3), np.uint8)
    assert video.frames[1, 2, 2, 0] > video.frames[1, 2, 2, 2]  # red comes first


def test_a_video_column_stands_between_images_and_question(tmp_path: Path):
    path = clip(tmp_path)
    rows = [row([path, path]) | {"image": Image.new("RGB", (8, 8))}, row(None) | {"image": None}]
    both, neither = prompts_from(rows, column_mapping(video="video"))
    assert [part["type"] for part in both.messages[0]["content"]] == ["image", "video", "video", "text"]
    assert (len(both.images), len(both.videos)) == (1, 2)
    assert neither.videos == []


@pytest.mark.parametrize("form", ["string", "bytes", "row with bytes", "row with path", "array", "pictures", "opened"])
def test_every_form_of_a_video_gives_the_same_frames(form: str, tmp_path: Path):
    path = clip(tmp_path)
    expected = opened(path)
    everything = opened(path, ALL)
    video = {
        "string": str(path),
        "bytes": path.read_bytes(),
        "row with bytes": {"bytes": path.read_bytes(), "path": "elsewhere.mp4"},
        "row with path": {"bytes": None, "path": str(path)},
        "array": {"frames": everything.frames, "fps": 10.0},
        "pictures": {"frames": [Image.fromarray(frame) for frame in everything.frames], "fps": 10},
        "opened": expected,
    }[form]
    found = opened(video)
    assert np.array_equal(found.frames, expected.frames)
    assert (list(found.frame_indices), found.fps) == (list(expected.frame_indices), expected.fps)


def test_a_datasets_video_column_is_read_from_its_file(tmp_path: Path):
    dataset = Dataset.from_list([row(str(clip(tmp_path))), row(None)]).cast_column("video", VideoFeature())
    some, none = prompts_from(dataset, column_mapping(image=None, video="video"))
    assert greys(some.videos[0]) == [0, 6, 12, 18, 24]
    assert none.videos == []


def test_a_file_without_an_index_of_its_frames_is_read(tmp_path: Path):
    path = clip(tmp_path, ending="avi")
    assert greys(opened(path)) == [0, 6, 12, 18, 24]


def test_one_frame_is_shown_twice_since_two_make_a_token(tmp_path: Path):
    for source in (clip(tmp_path, num_frames=1), {"frames": np.zeros((1, 4, 4, 3), np.uint8), "fps": 30}):
        video = opened(source)
        assert len(video.frames) == 2 and list(video.frame_indices) == [0, 0]


def test_large_frames_are_scaled_down_as_they_are_decoded(tmp_path: Path):
    # 64 · 48 = 3,072 pixels; a quarter of them is half of each side.
    video = opened(clip(tmp_path), FrameSampling(max_pixels=768))
    assert video.frames.shape == (5, 24, 32, 3)
    assert greys(video) == [0, 6, 12, 18, 24]


@given(st.integers(1, 5000), st.floats(1, 120), st.floats(0.1, 30), st.integers(2, 200))
def test_frames_are_chosen_as_qwen3_vl_chooses_them(num_frames: int, fps: float, wanted: float, most: int):
    from transformers import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(total_num_frames=num_frames, fps=fps)
    theirs = Qwen3VLVideoProcessor(max_frames=most).sample_frames(metadata, fps=wanted)
    assert FrameSampling(fps=wanted, max_frames=most).indices(num_frames, fps) == theirs.tolist()


def cut_avi(folder: Path) -> bytes:
    data = clip(folder, ending="avi").read_bytes()
    return data[: len(data) // 2]


BROKEN = {
    "truncated": (lambda folder: clip(folder).read_bytes()[:1500], "it is damaged, or no video"),
    "cut in the middle": (cut_avi, r"it ends after \d+ of 25 frames"),
    "text": (lambda folder: b"not a video", "it is damaged, or no video"),
    "empty file": (lambda folder: b"", "it is damaged, or no video"),
    "missing": (lambda folder: str(folder / "gone.mp4"), r"no such file: .*gone\.mp4"),
    "no frames": (lambda folder: {"frames": [], "fps": 2}, "it has 0 frames"),
    "no pixels": (lambda folder: {"frames": np.zeros((4, 0, 0, 3), np.uint8), "fps": 2}, "4 frames of 0 × 0 pixels"),
    "no rate": (lambda folder: {"frames": np.zeros((4, 2, 2, 3), np.uint8)}, "frames per second must be > 0, got None"),
    "grey": (
        lambda folder: {"frames": np.zeros((4, 2, 2), np.uint8), "fps": 2},
        r"expected frames \[F, H, W, 3\] of uint8, got \[4, 2, 2\] of uint8",
    ),
    "two sizes": (
        lambda folder: {"frames": [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 6))], "fps": 2},
        r"frames are of different sizes: \(6, 8, 3\) and \(8, 8, 3\)",
    ),
    "bare array": (lambda folder: np.zeros((4, 2, 2, 3), np.uint8), r'expected a path, .*"fps": .* got ndarray'),
    "times missing": (
        lambda folder: Video(frames=np.zeros((4, 2, 2, 3), np.uint8), fps=2.0, frame_indices=(0, 1)),
        "4 frames and 2 frame_indices",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_video_that_cannot_be_one_names_its_row_and_the_reason_in_one_line(kind: str, tmp_path: Path, capfd):
    make, reason = BROKEN[kind]
    prompts = prompts_from(
        [row(clip(tmp_path, num_frames=4)), row(make(tmp_path))], column_mapping(image=None, video="video")
    )
    assert len(prompts[0].videos) == 1
    capfd.readouterr()
    with pytest.raises(UnreadablePrompt) as caught:
        prompts[1]
    assert re.fullmatch(rf"row 1: video 0 cannot be read: \w+: .*{reason}.*", str(caught.value))
    assert capfd.readouterr() == ("", ""), "FFmpeg talked on its own"


def test_broken_videos_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [row(clip(tmp_path)), row(b"not a video")]
    stream = PromptStream(prompts_from(rows, column_mapping(image=None, video="video")), batch_size=2, seed=0)
    assert [prompt.id for prompt in stream.next_batch()] == ["row-0", "row-0"]
    assert stream.skipped >= 1
    assert "skipped row 1: video 0 cannot be read: ValueError: it is damaged, or no video" in caplog.text


@pytest.mark.parametrize(("option", "value"), [("fps", 0.0), ("max_frames", 1), ("max_pixels", 0)])
def test_a_sampling_that_sees_nothing_is_refused(option: str, value: float):
    with pytest.raises(ValueError, match=f"{option} of FrameSampling must be > .*, got {value:g}"):
        FrameSampling(**{option: value})
