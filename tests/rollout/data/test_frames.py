"""Lists of frames are one video each, with the rate that the row or the mapping gives them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rollout import Prompt
from rollout.data.chat_rows import chat_rows
from rollout.data.frames import EVERY_FRAME, SampledVideo, video_source, video_sources
from rollout.data.media import FrameSampling, UnreadablePrompt
from rollout.data.prompts import column_mapping, prompts_from

FRAMES = [Image.new("RGB", (32, 32), (40 * number, 0, 0)) for number in range(4)]
ASKED = [{"role": "user", "content": "<video>How often?"}]


def drawn(row: dict[str, Any], to_prompt: Any = chat_rows) -> Prompt:
    [prompt] = prompts_from([row], to_prompt)
    return prompt


def times(prompt: Prompt) -> list[list[float]]:
    """The seconds of each video's frames."""
    return [[index / video.fps for index in video.frame_indices] for video in prompt.videos]


def part(**video: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": [{"type": "video", **video}, {"type": "text", "text": "How often?"}]}]
    }


@pytest.mark.parametrize(
    "row",
    [
        part(video=FRAMES, sample_fps="1"),
        part(video=FRAMES, fps=1.0),
        {"prompt": ASKED, "videos": [{"video": FRAMES, "fps": 1.0}]},
        {"messages": ASKED, "videos": [FRAMES], "fps": 1},
        {"messages": ASKED, "videos": [FRAMES], "chat_template_kwargs": {"fps": 1, "max_pixels": 4096}},
        {"problem": "<video>How often?", "video": FRAMES, "sample_fps": 1},
        {"problem": "<video>How often?", "video": {"frames": FRAMES, "fps": 1}},
    ],
)
def test_frames_are_one_video_at_the_rows_rate(row: dict[str, Any]) -> None:
    prompt = drawn(row)
    assert times(prompt) == [[0.0, 1.0, 2.0, 3.0]]
    assert [part["type"] for part in prompt.messages[0]["content"]] == ["video", "text"]


@pytest.mark.parametrize("fps", [2, "rate"])
def test_a_mapping_gives_frames_the_rate_that_the_row_has_not(fps: Any) -> None:
    row = {"question": "How often?", "clip": [FRAMES, FRAMES[:2]], "rate": 2.0}
    prompt = drawn(row, column_mapping(image=None, video="clip", answer=None, fps=fps))
    assert times(prompt) == [[0.0, 0.5, 1.0, 1.5], [0.0, 0.5]]
    assert times(
        drawn({**row, "clip": FRAMES[1:]}, column_mapping(image=None, video="clip", answer=None, fps=fps))
    ) == [[0.0, 0.5, 1.0]]


def test_frames_without_a_rate_are_refused_with_the_remedy() -> None:
    with pytest.raises(UnreadablePrompt, match=r"row 0: it is a list of frames without a rate.*--columns\.fps"):
        drawn({"messages": ASKED, "videos": [FRAMES]})


def test_frames_may_be_files_or_data(tmp_path: Path) -> None:
    file = io.BytesIO()
    FRAMES[1].save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    path, uri = str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri()
    data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    for frames in ([path, path], [uri, data], [{"image": path}, {"bytes": file.getvalue(), "path": None}]):
        assert video_sources(frames, 2.0)[0]["fps"] == 2.0
        assert len(video_sources([frames, frames], 2.0)) == 2
    assert video_sources(["a.mp4", "b.mp4"], 2.0) == ["a.mp4", "b.mp4"]
    assert video_sources(None) == video_sources([]) == []


def test_a_file_is_sampled_as_its_row_asks_within_the_runs_limit() -> None:
    run = FrameSampling(fps=2.0, max_frames=16)
    slow = video_source({"type": "video", "video": "a.mp4", "fps": "0.5", "max_pixels": 4096})
    assert slow == SampledVideo(source="a.mp4", fps=0.5)
    asked = {"messages": ASKED, "video": "a.mp4", "chat_template_kwargs": {"fps": "0.5", "max_pixels": 4096}}
    assert chat_rows(asked).videos == [slow]
    assert chat_rows({"messages": ASKED, "video": "a.mp4", "fps": 30}).videos == ["a.mp4"]  # a list's rate only
    assert slow.sampling(run) == FrameSampling(fps=0.5, max_frames=16)
    eight = video_source({"video": "a.mp4", "nframes": 8})
    assert eight.sampling(run) == FrameSampling(fps=EVERY_FRAME, max_frames=8)
    assert video_source({"video": "a.mp4", "max_frames": 99}).sampling(run) == run
    assert video_source({"video_url": {"url": "a.mp4"}}) == "a.mp4"
    assert video_source({"bytes": b"\0", "path": "a.mp4"}) == {"bytes": b"\0", "path": "a.mp4"}


def test_each_of_several_videos_has_its_own_sampling() -> None:
    videos = [{"video": FRAMES, "fps": 2.0, "nframes": 2}, {"video": FRAMES, "fps": 1.0}]
    prompt = drawn({"prompt": [{"role": "user", "content": "<video><video>Which?"}], "videos": videos})
    assert times(prompt) == [[0.0, 1.5], [0.0, 1.0, 2.0, 3.0]]
    with pytest.raises(UnreadablePrompt, match="row 0: video 1 cannot be read: .*no such file"):
        drawn({"prompt": [{"role": "user", "content": "<video><video>"}], "videos": [videos[0], "none.mp4"]})


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        ({"video": "a.mp4", "video_start": 3.0}, "the option 'video_start', which is not supported"),
        ({"video": "a.mp4", "fps": 0}, "the option fps of its video must be a number > 0, got 0"),
        ({"video": FRAMES, "fps": 1, "sample_fps": 2}, "its frames have the rates 1.0 and 2.0: give fps or sample_fps"),
        ([FRAMES[0], "a.mp4"], "a list of videos has pictures in it"),
        ("a.png", "its video is a single picture"),
    ],
)
def test_a_video_that_would_be_another_one_is_refused(video: Any, reason: str) -> None:
    with pytest.raises(UnreadablePrompt, match=reason):
        drawn({"messages": ASKED, "video": video})
