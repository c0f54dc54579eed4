"""Videos as datasets of the field write them: lists of frames, and files with a frame rate or a number of frames of their own.

Qwen's messages and verl's column have `{"video": FILE or [frames], "fps": 2.0}`, ms-swift and LLaMA-Factory `[[frames], [frames]]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from rollout.data.media import FrameSampling, UnreadablePrompt, brief, open_videos
from rollout.types import Video

FILES = ("video", "video_url", "url", "path", "bytes")
RATES = ("sample_fps", "fps")
"""Frames per second: of a list, those that it has; of a file, those to sample."""
LIMITS = ("nframes", "max_frames")
EVERY_FRAME = 1e6
"""Frames per second of which no video has so many."""
NOT_OURS = frozenset("min_frames min_pixels max_pixels total_pixels resized_height resized_width raw_fps type".split())
"""Options that the run decides: `--rollout.max-video-pixels` limits sizes."""
VIDEO_OPTIONS = frozenset({*RATES, *LIMITS, *NOT_OURS})
PICTURES = frozenset(".png .jpg .jpeg .jfif .webp .bmp .tif .tiff".split())
_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"BM")
NO_RATE = (
    "it is a list of frames without a rate, which decides their times: give it in the row, as "
    '{"video": [...], "fps": 2.0}, or for all rows by column_mapping(fps=...), --columns.fps'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledVideo:
    """A video with a sampling of its own."""

    source: Any
    """A source that `open_videos` takes."""
    fps: float | None = None
    """Frames per second of its time; `None`: as the run."""
    max_frames: int | None = None
    """Most frames; `None`: as the run."""

    def sampling(self, run: FrameSampling) -> FrameSampling:
        """Returns the sampling, within the run's limit of frames."""
        return replace(run, fps=self.fps or run.fps, max_frames=min(self.max_frames or run.max_frames, run.max_frames))


def video_sources(value: Any, fps: Any = None, options: Mapping[str, Any] | None = None) -> list[Any]:
    """Returns the videos of a column's value: one, a list of them, or one as a list of its frames.

    Args:
        value: A value of `video_source`, a list of such, or None.
        fps: Frames per second of lists that have no rate themselves.
        options: Options of each video, beside its own.

    Raises:
        UnreadablePrompt: As `video_source`, or if a list has pictures beside videos.
    """
    if value is None or (isinstance(value, str | list | tuple) and not len(value)):
        return []
    pictures = [_is_picture(item) for item in value] if isinstance(value, list | tuple) else [True]
    if any(pictures) and not all(pictures):
        raise UnreadablePrompt(
            "a list of videos has pictures in it: give the frames of each video as a list of its own"
        )
    videos = [value] if all(pictures) else value
    if options:
        videos = [{**options, **(video if isinstance(video, Mapping) else {"video": video})} for video in videos]
    return [video_source(video, fps) for video in videos]


def video_source(value: Any, fps: Any = None) -> Any:
    """Returns one video as `open_sampled` takes it: frames become `{"frames": [...], "fps": ...}`.

    Args:
        value: A file, its content, a list of frames, a `Video`, or a mapping that has one of them beside options.
        fps: Frames per second of a list that has no rate itself.

    Raises:
        UnreadablePrompt: If frames have no rate, or an option cannot be followed.
    """
    if isinstance(value, list | tuple):
        return _of_frames(value, {}, fps)
    if isinstance(value, str | bytes) and _is_picture(value):
        raise UnreadablePrompt("its video is a single picture: give a list of frames, or put it among the images")
    if not isinstance(value, Mapping):
        return value
    options = {name: item for name, item in value.items() if item is not None}
    if "frames" in options:
        if "timestamps" in options or not isinstance(options["frames"], list | tuple):
            return options
        return _of_frames(options.pop("frames"), options, fps)
    held = {name: options.pop(name) for name in FILES if name in options}
    source = next((held[name] for name in FILES[:3] if name in held), held)
    if isinstance(source, Mapping) and source is not held:  # {"video_url": {"url": ...}}, {"video": {"path": ...}}
        return video_source({**source, **options}, fps)
    if isinstance(source, list | tuple):
        return _of_frames(source, options, fps)
    _require_known(options)
    rates = [_positive(name, options[name]) for name in RATES if name in options]
    return _sampled(source, options, fps=rates[0] if rates else None)


def open_sampled(sources: Sequence[Any], sampling: FrameSampling) -> list[Video]:
    """Decodes videos with the run's sampling, or with their own.

    Raises:
        UnreadablePrompt: As `open_videos`.
    """
    if not any(isinstance(source, SampledVideo) for source in sources):
        return open_videos(sources, sampling)
    opened: list[Video] = []
    for number, source in enumerate(sources):
        own = source if isinstance(source, SampledVideo) else SampledVideo(source=source)
        try:
            opened += open_videos([own.source], own.sampling(sampling))
        except UnreadablePrompt as error:
            raise UnreadablePrompt(f"video {number} cannot be read: {brief(error.__cause__ or error)}") from error
    return opened


def _of_frames(frames: Any, options: Mapping[str, Any], fps: Any) -> Any:
    """Returns a video of single pictures."""
    _require_known(options)
    rates = {_positive(name, options[name]) for name in RATES if name in options}
    if len(rates) > 1:
        raise UnreadablePrompt(
            f"its frames have the rates {' and '.join(map(str, sorted(rates)))}: give fps or sample_fps"
        )
    if not rates and fps is None:
        raise UnreadablePrompt(NO_RATE)
    rate = rates.pop() if rates else _positive("fps", fps)
    return _sampled({"frames": [image_source(frame) for frame in frames], "fps": rate}, options)


def _sampled(source: Any, options: Mapping[str, Any], fps: float | None = None) -> Any:
    """Returns a source with the sampling that its options ask for, if they do."""
    numbers = {name: max(1, int(_positive(name, options[name]))) for name in LIMITS if name in options}
    if fps is None and not numbers:
        return source
    if "nframes" in numbers:
        fps = EVERY_FRAME
    return SampledVideo(source=source, fps=fps, max_frames=min(numbers.values(), default=None))


def image_source(image: Any) -> Any:
    """Returns an image that Qwen's messages and verl's column have as `{"image": ...}`; any other as it is."""
    return image["image"] if isinstance(image, Mapping) and image.get("image") is not None else image


def _require_known(options: Mapping[str, Any]) -> None:
    unknown = [name for name in options if name not in VIDEO_OPTIONS]
    if unknown:
        raise UnreadablePrompt(
            f"its video has the option {unknown[0]!r}, which is not supported: use {', '.join((*RATES, *LIMITS))}, or cut the file"
        )


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise UnreadablePrompt(f"the option {name} of its video must be a number > 0, got {value!r:.40}")
    return number


def _is_picture(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(
            _is_picture(value[name]) for name in ("image", "path", "url", "bytes") if value.get(name) is not None
        )
    if isinstance(value, bytes):
        return value.startswith(_HEADS) or value[8:12] == b"WEBP"
    if isinstance(value, str | Path):
        text = str(value)
        return text.startswith("data:image/") or (len(text) < 4096 and PurePosixPath(text).suffix.lower() in PICTURES)
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim == 3)
