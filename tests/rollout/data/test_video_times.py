"""A video's frames have their true times, whatever its frame rate does, and only a damaged file is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from rollout.data.images import open_image
from rollout.data.media import FrameSampling, UnreadablePrompt, open_videos
from rollout.data.prompts import column_mapping, prompts_from
from rollout.data.videos import open_video
from rollout.rendering import patch_times
from rollout.types import Video

SIZE = (64, 48)
EVERY = FrameSampling(fps=1e4, max_frames=10_000)
DROPPED = [*range(0, 1000, 40), *range(2000, 3000, 40)]
"""25 frames a second, none of them in the second second."""
SLOWER = [*range(0, 1000, 50), *range(1000, 5000, 500)]
"""20 frames a second, then 2."""


def constant(path: Path, num_frames: int, fps: float) -> Path:
    """Writes a video of a constant rate. The n-th frame has the grey 5 n, from 0 again at 250."""
    codec = cv2.VideoWriter_fourcc(*("VP80" if path.suffix == ".webm" else "mp4v"))
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, fps, SIZE)
    for number in range(num_frames):
        writer.write(np.full((SIZE[1], SIZE[0], 3), 5 * number % 250, np.uint8))
    writer.release()
    return path


def written(path: Path, milliseconds: Sequence[int]) -> Path:
    """Writes a video with frames at these times, multiples of 10."""
    evenly = constant(path.with_suffix(f".even{path.suffix}"), len(milliseconds), 25.0)
    packets = cv2.VideoCapture(str(evenly), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    as_packets = [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1]
    codec = int(packets.get(cv2.CAP_PROP_FOURCC))
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 100.0, SIZE, as_packets)
    for time in milliseconds:
        _, packet = packets.read()
        writer.set(cv2.VIDEOWRITER_PROP_KEY_FLAG, int(packets.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME)))
        writer.set(cv2.VIDEOWRITER_PROP_PTS, time // 10)
        writer.write(packet)
    writer.release()
    return path


def seen(video: Video) -> list[int]:
    """Returns the numbers of the frames, by their greys, which are up to 4 too dark after coding."""
    return [round((float(frame.mean()) + 2) / 5) for frame in video.frames]


def seconds(video: Video) -> list[float]:
    return [index / video.fps for index in video.frame_indices]


@pytest.mark.parametrize("ending", ["mkv", "webm"])
@pytest.mark.parametrize("milliseconds", [DROPPED, SLOWER], ids=["dropped frames", "variable rate"])
def test_each_frame_has_the_time_at_which_it_is_shown(ending: str, milliseconds: list[int], tmp_path: Path):
    path = written(tmp_path / f"clip.{ending}", milliseconds)
    for sampling in (EVERY, FrameSampling(), FrameSampling(max_frames=5)):
        for source in (str(path), path.read_bytes()):
            video = open_video(source, sampling)
            assert seconds(video) == [milliseconds[number] / 1000 for number in seen(video)]


def test_frames_are_evenly_spread_over_time_and_not_over_their_numbers(tmp_path: Path):
    # 20 frames in the first second, 8 in the next four: points at 0, 1.125, 2.25, 3.375 and 4.5 seconds.
    video = open_video(str(written(tmp_path / "clip.mkv", SLOWER)), FrameSampling(max_frames=5))
    assert seconds(video) == [0.0, 1.0, 2.5, 3.5, 4.5]
    assert seen(video) == [0, 20, 23, 25, 27]


def test_the_policy_is_told_the_true_times(tmp_path: Path):
    video = open_video(str(written(tmp_path / "clip.webm", SLOWER)), FrameSampling(max_frames=4))
    # The nearest to 0, 1.5, 3 and 4.5 seconds: 0 and 1.5 make a token, 3 and 4.5 the next.
    assert patch_times(video, 2) == [0.75, 3.75]


def test_a_constant_rate_keeps_its_frame_numbers_although_the_file_rounds_times(tmp_path: Path):
    # Matroska has whole milliseconds: 0, 33, 67, 100, …
    video = open_video(str(constant(tmp_path / "clip.mkv", 46, 30.0)), FrameSampling())
    assert (video.fps, list(video.frame_indices)) == (30.0, [0, 15, 30, 45])
    assert seen(video) == [0, 15, 30, 45]


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_a_file_that_ends_early_is_refused_although_one_with_as_few_frames_is_not(ending: str, tmp_path: Path):
    path = written(tmp_path / f"clip.{ending}", [*range(0, 2000, 40), 9000])
    assert len(open_video(str(path), EVERY).frames) > 4
    [damaged] = [path.read_bytes()[: path.stat().st_size // 2]]
    with pytest.raises(UnreadablePrompt, match=r"video 0 cannot be read: ValueError: it ends after \d+ of \d+ frames"):
        open_videos([damaged], FrameSampling())


def test_a_long_video_is_read_by_jumps_to_the_frames_that_decoding_all_would_give(tmp_path: Path, monkeypatch):
    path = tmp_path / "long.webm"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"VP80"), 25.0, SIZE)
    for number in range(1500):
        frame = np.full((SIZE[1], SIZE[0], 3), number // 256 * 40, np.uint8)
        frame[:, SIZE[0] // 2 :] = number % 256
        writer.write(frame)
    writer.release()
    grabs = []
    sampling = FrameSampling(max_frames=7)
    jumped = open_video(str(path), sampling)
    monkeypatch.setattr("rollout.data.videos._Reader.jump_before", lambda reader, number: grabs.append(number))
    decoded = open_video(str(path), sampling)
    assert grabs == list(decoded.frame_indices) == list(jumped.frame_indices)
    assert np.array_equal(jumped.frames, decoded.frames)
    numbers = [round(float(f[:, 2:20].mean()) / 40) * 256 + float(f[:, -20:-2].mean()) for f in jumped.frames]
    assert np.abs(np.array(numbers) - list(jumped.frame_indices)).max() < 4, "grey is coded with loss"


def test_jumps_that_miss_are_not_trusted(tmp_path: Path, monkeypatch):
    path = written(tmp_path / "clip.webm", list(range(0, 4800, 40)))
    sampling = FrameSampling(max_frames=4)
    expected = open_video(str(path), sampling)

    def jump_too_far(reader, number):
        if number:
            reader.has_jumped = True
            while reader.now < reader._contents.seconds[number] and reader._advance():
                pass

    monkeypatch.setattr("rollout.data.videos._Reader.jump_before", jump_too_far)
    assert np.array_equal(open_video(str(path), sampling).frames, expected.frames)


def pictures(folder: Path) -> list[np.ndarray]:
    frames = [np.full((48, 64, 3), 50 * number, np.uint8) for number in range(5)]
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return frames


def test_a_list_of_files_is_one_video_with_the_rate_or_the_times_that_are_given(tmp_path: Path):
    frames = pictures(tmp_path)
    paths = [str(tmp_path / f"{number}.png") for number in range(5)]
    mixed = [paths[0], Path(paths[1]).read_bytes(), {"bytes": None, "path": paths[2]}, Image.open(paths[3]), frames[4]]
    for given in (paths, mixed, np.stack(frames)):
        video = open_video({"frames": given, "fps": 2.0}, FrameSampling())
        assert np.array_equal(video.frames, frames) and seconds(video) == [0.0, 0.5, 1.0, 1.5, 2.0]
    timed = open_video({"frames": paths, "timestamps": [0, 0.25, 0.5, 8, 9.5], "fps": None}, FrameSampling())
    # 9.5 seconds and a mean frame: all five would be too few, so the nearest to 0, 2.375, 4.75, 7.125 and 9.5 are taken.
    assert seconds(timed) == [0.0, 0.5, 8.0, 9.5]


def test_only_the_frames_that_are_sampled_are_opened(tmp_path: Path):
    pictures(tmp_path)
    frames = [str(tmp_path / "0.png"), *["/no/such/frame.png"] * 3, str(tmp_path / "4.png")]
    assert len(open_video({"frames": frames, "fps": 2.0}, FrameSampling(max_frames=2)).frames) == 2


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        ({"frames": ["a", "b"], "fps": 1.0, "timestamps": [0, 1]}, "it has both fps and timestamps: give one of them"),
        ({"frames": ["a", "b"], "timestamps": [0.0]}, "it has 2 frames and 1 timestamps"),
        ({"frames": ["a", "b"], "timestamps": [1.0, 0.5]}, "timestamps of its frames must be seconds >= 0"),
        ({"frames": ["a", "b"], "timestamps": [0.0, float("nan")]}, "timestamps of its frames must be seconds >= 0"),
        ({"frames": "clip.mp4", "fps": 2}, "its frames must be a list of pictures, got str"),
        ({"frames": ["/no/such/frame.png"], "fps": 2}, "no such file: /no/such/frame.png"),
    ],
)
def test_frames_that_make_no_video_are_refused_with_the_reason(video: dict[str, object], reason: str):
    with pytest.raises(UnreadablePrompt, match=f"video 0 cannot be read: .*{reason}"):
        open_videos([video], FrameSampling())


def test_a_video_may_have_any_name(tmp_path: Path):
    path = written(tmp_path / "clip.mkv", DROPPED)
    expected = open_video(str(path), FrameSampling())
    (tmp_path / "a:b").mkdir()
    for name in ("12:30.mp4", "a:b/clip.m4v", "clip", "clip%03d.mkv", "#1?.mkv", "Ü b.webm"):
        (tmp_path / name).write_bytes(path.read_bytes())
        rows = [{"question": "?", "video": str(tmp_path / name), "answer": "1"}]
        [prompt] = prompts_from(rows, column_mapping(image=None, video="video"))
        assert np.array_equal(prompt.videos[0].frames, expected.frames)


def test_a_relative_name_with_a_colon_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path / "12:30.mkv", DROPPED)
    Image.new("RGB", (8, 4), "red").save(tmp_path / "4:3.jpg")
    monkeypatch.chdir(tmp_path)
    assert len(open_video("12:30.mkv", FrameSampling()).frames) == 6
    assert open_image("4:3.jpg").size == (8, 4)
