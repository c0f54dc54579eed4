"""Opens the images and videos of a prompt from any form that a dataset stores them in."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rollout.types import Video

# Silences FFmpeg: our errors name the damaged file. FFmpeg reads this once, when OpenCV first uses it.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

T = TypeVar("T")

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HEIC = (b"heic", b"heix", b"mif1", b"msf1", b"avif")
LONGEST_PATH = 4096
"""Characters; Linux takes no longer path."""

_DECODING = Lock()
"""Rows may share a PIL image, which is decoded at its first use. Two threads must not decode it at once."""
BRIEF = 200
"""Characters of an error's text."""
MIN_FRAMES = 4
"""Fewest frames that Qwen3-VL takes of a video, if it has as many."""
TOLERATED_SHORTAGE = 0.05
"""Share of missing frames that is tolerated: some containers only estimate their number. A video with more missing is damaged."""


class UnreadablePrompt(ValueError):
    """A row that cannot become a prompt. The message names the row and the reason."""


def brief(error: BaseException) -> str:
    """Returns an exception on one line of at most 200 characters: what a row holds may be megabytes."""
    text = " ".join(f"{type(error).__name__}: {str(error)[:1000]}".split())
    return text if len(text) <= BRIEF else text[:BRIEF] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSampling:
    """The sampling of a video's frames, evenly spread from the first to the last, as Qwen3-VL was trained."""

    fps: float = 2.0
    """Frames per second of the video's time."""
    max_frames: int = 64
    """Most frames of a video. A longer one is sampled at fewer frames per second."""
    max_pixels: int = 768 * 32 * 32
    """Most pixels of a frame. Larger frames are scaled down as they are decoded. Default: 768 tokens of 32 × 32."""

    def __post_init__(self) -> None:
        for name, least in (("fps", 0.0), ("max_frames", 1), ("max_pixels", 0)):
            if not getattr(self, name) > least:
                raise ValueError(f"{name} of FrameSampling must be > {least:g}, got {getattr(self, name)}")

    def indices(self, num_frames: int, fps: float) -> list[int]:
        """Returns the numbers of the sampled frames, in order.

        Args:
            num_frames: Frames of the video, at least 1.
            fps: The video's frames per second.
        """
        wanted = max(int(num_frames / fps * self.fps), MIN_FRAMES)
        count = min(wanted, self.max_frames, num_frames)
        return [int(index) for index in np.linspace(0, num_frames - 1, count).round()]


def open_images(sources: Sequence[Any]) -> list[Image.Image]:
    """Decodes images to upright RGB, with transparent pixels on white.

    Args:
        sources: PIL images, paths, the bytes of a file, or `{"bytes": ..., "path": ...}`.

    Raises:
        UnreadablePrompt: If one cannot be read. Names the image and the reason.
    """
    return _open_each("image", sources, _open_image)


def open_videos(sources: Sequence[Any], sampling: FrameSampling) -> list[Video]:
    """Decodes the sampled frames of videos.

    Args:
        sources: Paths, the bytes of a file, `{"bytes": ..., "path": ...}`, `{"frames": PIL images or an array, "fps": ...}`;
            or Videos, which are returned unchanged.
        sampling: The sampling of frames.

    Raises:
        UnreadablePrompt: If one cannot be read. Names the video and the reason.
    """
    return _open_each("video", sources, lambda source: _open_video(source, sampling))


def undecoded_videos(rows: Any) -> Any:
    """Makes a `datasets.Dataset` return its videos as files. Its decoder would read whole videos, and needs torchcodec."""
    for name, feature in (getattr(rows, "features", None) or {}).items():
        if type(feature).__name__ == "Video" and feature.decode:
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def _open_each(kind: str, sources: Sequence[Any], open_one: Callable[[Any], T]) -> list[T]:
    opened = []
    for number, source in enumerate(sources):
        try:
            opened.append(open_one(source))
        except Exception as error:  # decoders raise almost anything on damaged files; nothing else runs inside
            raise UnreadablePrompt(f"{kind} {number} cannot be read: {brief(error)}") from error
    return opened


def _open_image(source: Any) -> Image.Image:
    source = _file_of(source)
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    if isinstance(source, str | Path | io.BytesIO):
        try:
            with Image.open(source) as opened:
                return _as_rgb(opened)
        except UnidentifiedImageError:
            named = "it" if isinstance(source, io.BytesIO) else source
            raise ValueError(f"{named} is {_kind_of_file(source)}, not a picture that can be read") from None
    if isinstance(source, Image.Image):
        with _DECODING:
            return _as_rgb(source)
    raise ValueError(
        f'expected a PIL image, a path, bytes or {{"bytes": ..., "path": ...}}, got {type(source).__name__}'
    )


def _file_of(source: Any) -> Any:
    """Returns the bytes or the path of a file that `datasets` has not decoded, or that a text names or holds.

    Raises:
        ValueError: If a text is empty, an address in the network, or holds no bytes that can be decoded.
    """
    if isinstance(source, Mapping):
        named = (source[key] for key in ("bytes", "path", "url") if source.get(key) is not None)
        source = next(named, "")
    if not isinstance(source, str):
        return source
    if not source.strip():
        raise ValueError("it is an empty text: give None, or no media, for a row without")
    if source.startswith("data:"):
        return base64.b64decode(source.partition(",")[2])
    if source.startswith("file://"):
        return url2pathname(urlsplit(source).path)
    if scheme := _ADDRESS.match(source):
        raise ValueError(f"it is an address ({scheme[0]}…): download the files first, and give their paths")
    if len(source) > LONGEST_PATH:
        return base64.b64decode(source, validate=True)  # a file without the head of a data URI
    return source


def _kind_of_file(source: Any) -> str:
    """Returns what a file is by its first bytes, for an error message."""
    head = source.getvalue()[:512] if isinstance(source, io.BytesIO) else Path(source).read_bytes()[:512]
    text = head.lstrip().lower()
    if not head:
        return "an empty file"
    if b"<svg" in text:
        return "an SVG drawing"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head[4:8] == b"ftyp":
        return "a HEIC or AVIF picture, or a video" if head[8:12] in _HEIC else "a video"
    if head.startswith((b"\x1aE\xdf\xa3", b"RIFF")):
        return "a video"
    return f"a file that begins with {head[:8]!r}"


def _as_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"it has {image.width} × {image.height} pixels")
    if image.mode in ("I", "F"):  # PIL would cut all values above 255, and return white
        raise ValueError(f"its mode is {image.mode}, without defined black and white: convert it to L or RGB")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        # Cameras and scanners store 12 bits in 16: read as 16 they would be nearly black.
        image = Image.fromarray((values // (257 if values.max() > 4095 else 16)).astype(np.uint8))
    image = ImageOps.exif_transpose(image)  # a camera may store a photo rotated
    if image.has_transparency_data:  # a chart with a transparent background would otherwise turn black on black
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _open_video(source: Any, sampling: FrameSampling) -> Video:
    if isinstance(source, Video):
        return _checked(source)
    if isinstance(source, Mapping) and "frames" in source:
        return _choose_frames(source["frames"], source.get("fps"), sampling)
    source = _file_of(source)
    if isinstance(source, bytes):
        return _decode(lambda: io.BytesIO(source), sampling)
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise FileNotFoundError(f"no such file: {source}")
        return _decode(lambda: str(source), sampling)
    raise ValueError(
        'expected a path, bytes, {"bytes": ..., "path": ...}, {"frames": ..., "fps": ...} or a Video, '
        f"got {type(source).__name__}"
    )


def _choose_frames(frames: Any, fps: float | None, sampling: FrameSampling) -> Video:
    """Samples a video that is given as single pictures."""
    if not len(frames):
        raise ValueError("it has 0 frames")
    fps = _checked_fps(fps)
    indices = sampling.indices(len(frames), fps)
    return _as_video([_scaled(_pixels(frames[index]), sampling) for index in indices], fps, indices)


def _decode(stream: Callable[[], Any], sampling: FrameSampling) -> Video:
    with _capture(stream()) as capture:
        fps, stated = _frame_rate(capture), _frame_count(capture)
    count = stated or _count_frames(stream())
    while True:
        indices = sampling.indices(count, fps)
        frames, num_read = _read_frames(stream(), indices, sampling)
        if len(frames) == len(indices):
            return _as_video(frames, fps, indices)
        if num_read < (1 - TOLERATED_SHORTAGE) * stated:
            raise ValueError(f"it ends after {num_read} of {stated} frames")
        count = num_read


@contextmanager
def _capture(stream: Any) -> Iterator[Any]:
    """Opens OpenCV's reader of a path or of a file's content, without its messages on the terminal."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise ValueError("it is damaged, or no video")
        yield capture
    finally:
        capture.release()


def _frame_rate(capture: Any) -> float:
    import cv2

    return _checked_fps(capture.get(cv2.CAP_PROP_FPS))


def _frame_count(capture: Any) -> int:
    """Returns the number of frames that the file states; 0 if it states none."""
    import cv2

    return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))


def _count_frames(stream: Any) -> int:
    with _capture(stream) as capture:
        count = 0
        while capture.grab():
            count += 1
    if not count:
        raise ValueError("it has 0 frames")
    return count


def _read_frames(stream: Any, indices: Sequence[int], sampling: FrameSampling) -> tuple[list[np.ndarray], int]:
    """Returns frames [H, W, 3] up to the end of the video, and the number of frames that were read.

    All frames are read one after the other: OpenCV's jumps to a frame number miss it in many files.
    """
    frames: list[np.ndarray] = []
    with _capture(stream) as capture:
        for number in range(indices[-1] + 1):
            if not capture.grab():
                return frames, number
            if number == indices[len(frames)]:
                is_whole, frame = capture.retrieve()
                if not is_whole:
                    return frames, number
                frames.append(_scaled(frame[:, :, ::-1], sampling))  # OpenCV has blue first
    return frames, indices[-1] + 1


def _pixels(frame: Any) -> np.ndarray:
    return np.asarray(_as_rgb(frame)) if isinstance(frame, Image.Image) else np.asarray(frame)


def _scaled(frame: np.ndarray, sampling: FrameSampling) -> np.ndarray:
    """Returns a frame [H, W, 3] of at most `max_pixels`."""
    if frame.ndim != 3 or frame.shape[0] * frame.shape[1] <= sampling.max_pixels:
        return frame
    height, width = frame.shape[:2]
    scale = math.sqrt(sampling.max_pixels / (height * width))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC))


def _as_video(frames: Sequence[np.ndarray], fps: float, indices: Sequence[int]) -> Video:
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"its frames are of different sizes: {' and '.join(map(str, sorted(sizes)))}")
    return _checked(Video(frames=np.stack(frames), fps=fps, frame_indices=tuple(indices)))


def _checked(video: Video) -> Video:
    """Checks a video and returns it. A single frame is repeated, since two frames make a token."""
    shape = video.frames.shape
    if len(shape) != 4 or shape[3] != 3 or video.frames.dtype != np.uint8:
        raise ValueError(f"expected frames [F, H, W, 3] of uint8, got {list(shape)} of {video.frames.dtype}")
    if 0 in shape:
        raise ValueError(f"it has {shape[0]} frames of {shape[2]} × {shape[1]} pixels")
    if len(video.frame_indices) != shape[0]:
        raise ValueError(f"it has {shape[0]} frames and {len(video.frame_indices)} frame_indices")
    _checked_fps(video.fps)
    if shape[0] == 1:
        return Video(
            frames=np.repeat(video.frames, 2, axis=0), fps=video.fps, frame_indices=tuple(video.frame_indices) * 2
        )
    return video


def _checked_fps(fps: float | None) -> float:
    if fps is None or not 0 < fps < math.inf:
        raise ValueError(f"its frames per second must be > 0, got {fps}")
    return float(fps)
