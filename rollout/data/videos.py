"""Opens videos: frames evenly spread over their time, each with its true time."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rollout.data.files import file_of, kind_of_file, opened
from rollout.data.images import open_image
from rollout.types import Video

# Silences FFmpeg: our errors name the damaged file. FFmpeg reads this once, when OpenCV first uses it.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

MIN_FRAMES = 4
"""Fewest frames that Qwen3-VL takes of a video, if it has as many."""
TOLERATED_SHORTAGE = 0.05
"""Share of a video's time that may be missing: some containers only estimate it. A video with more missing is damaged."""
SAME_TIME = 0.0005
"""Seconds by which the times of one frame may differ."""
OPENCV_LEAD = 16
"""Frames before its aim from which OpenCV looks for a key frame to jump to."""
CLOCK = 1000.0
"""Ticks per second of the frames' times in a video whose frame rate varies."""


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
        """Returns the numbers of the sampled frames of a video with a constant frame rate, in order.

        Args:
            num_frames: Frames of the video, at least 1.
            fps: The video's frames per second.
        """
        return self.chosen(FrameTimes(ticks=np.arange(num_frames), clock=fps))

    def chosen(self, times: FrameTimes) -> list[int]:
        """Returns the numbers of the sampled frames, in order: those nearest to points evenly spread over the video's time."""
        ticks, num_frames = times.ticks, len(times.ticks)
        wanted = max(int(times.length / times.clock * self.fps), MIN_FRAMES)
        points = np.linspace(ticks[0], ticks[-1], min(wanted, self.max_frames, num_frames)).round()
        after = np.searchsorted(ticks, points)
        before = np.maximum(after - 1, 0)
        nearest = np.where(points - ticks[before] < ticks[after] - points, before, after)
        return np.unique(nearest).tolist()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameTimes:
    """The times of all frames of a video: ticks / clock seconds."""

    ticks: np.ndarray
    """[N] int, in increasing order."""
    clock: float
    """Ticks per second. If the frame rate is constant, it is this rate, and the ticks are the frames' numbers."""

    @property
    def length(self) -> float:
        """Ticks from the first frame to the end of the last, which is shown as long as the mean frame."""
        num_frames = len(self.ticks)
        return float((self.ticks[-1] - self.ticks[0]) * num_frames / (num_frames - 1)) if num_frames > 1 else 1.0


def open_video(source: Any, sampling: FrameSampling) -> Video:
    """Decodes the sampled frames of a video.

    Args:
        source: What `file_of` takes; or `{"frames": ..., "fps": ...}` with pictures, which may be files, or an array
            [F, H, W, 3]; "timestamps" in seconds may replace "fps". Or a Video, which is returned unchanged.
        sampling: The sampling of frames.
    """
    if isinstance(source, Video):
        return _checked(source)
    if isinstance(source, Mapping) and "frames" in source:
        return _of_pictures(source, sampling)
    file = file_of(source)
    if isinstance(file, Path | bytes):
        return _decoded(file, sampling)
    raise ValueError(
        'expected a path, bytes, {"bytes": ..., "path": ...}, {"frames": ..., "fps": ...} or a Video, '
        f"got {type(source).__name__}"
    )


def _of_pictures(source: Mapping[str, Any], sampling: FrameSampling) -> Video:
    """Samples a video that is given as single pictures."""
    frames, fps, seconds = source["frames"], source.get("fps"), source.get("timestamps")
    if isinstance(frames, str | bytes | Mapping) or not hasattr(frames, "__len__"):
        raise ValueError(f"its frames must be a list of pictures, got {type(frames).__name__}")
    if not len(frames):
        raise ValueError("it has 0 frames")
    if seconds is None:
        times = FrameTimes(ticks=np.arange(len(frames)), clock=_checked_fps(fps))
    elif fps is not None:
        raise ValueError("it has both fps and timestamps: give one of them")
    elif len(seconds) != len(frames):
        raise ValueError(f"it has {len(frames)} frames and {len(seconds)} timestamps")
    else:
        times = _on_clock(np.asarray(seconds, float))
    numbers = sampling.chosen(times)
    return _as_video([_scaled(_pixels(frames[number]), sampling) for number in numbers], times, numbers)


def _on_clock(seconds: np.ndarray) -> FrameTimes:
    """Returns times of a rate that varies."""
    if not np.isfinite(seconds).all() or (np.diff(seconds, prepend=0.0) < 0).any():
        raise ValueError("the timestamps of its frames must be seconds >= 0, in increasing order")
    return FrameTimes(ticks=np.round(seconds * CLOCK).astype(np.int64), clock=CLOCK)


def _pixels(frame: Any) -> np.ndarray:
    """Returns the pixels [H, W, 3] of a picture, which may be a file."""
    if isinstance(frame, Image.Image | str | bytes | Path | Mapping):
        return np.asarray(open_image(frame))
    return np.asarray(frame)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Contents:
    """The frames of a file, as its packets describe them."""

    seconds: np.ndarray
    """[N] time of each frame from the first, in increasing order."""
    keys: np.ndarray
    """[K] numbers of the frames at which decoding may begin."""
    offset: float
    """Time of the first frame in the file, in seconds."""
    timed: bool
    """False: the file has no times, so those above are number / fps."""
    fps: float
    """The stated frames per second; 0 if none are stated."""

    def times(self) -> FrameTimes:
        """Returns the frames' times, in numbers of frames if each is within half a frame of number / fps."""
        numbers = np.arange(len(self.seconds))
        if self.fps and np.abs(self.seconds * self.fps - numbers).max() <= 0.5:
            return FrameTimes(ticks=numbers, clock=self.fps)
        return _on_clock(self.seconds)


def _decoded(file: Path | bytes, sampling: FrameSampling) -> Video:
    contents = _contents(file)
    while True:
        times = contents.times()
        numbers = sampling.chosen(times)
        frames, last = _read_frames(file, numbers, contents, sampling)
        if len(frames) == len(numbers):
            return _as_video(frames, times, numbers)
        readable = min(int((contents.seconds <= last + SAME_TIME).sum()), numbers[len(frames)])
        if not readable:
            raise ValueError(
                f"none of its frames can be decoded: it is {kind_of_file(file)}, codec {_codec(file)}; convert a whole one to H.264"
            )
        if readable < (1 - TOLERATED_SHORTAGE) * len(contents.seconds):
            raise ValueError(f"it ends after {readable} of {len(contents.seconds)} frames")
        contents = replace(contents, seconds=contents.seconds[:readable])


def _contents(file: Path | bytes) -> _Contents:
    """Reads all packets of a file, without decoding them.

    Raises:
        ValueError: If it is no video, or ends before it should.
    """
    import cv2

    with _capture(file) as capture:
        fps, stated = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        fps, stated = fps if 0 < fps < math.inf else 0.0, int(max(stated, 0))
        capture.set(cv2.CAP_PROP_FORMAT, -1)  # packets as they are stored
        packets = [
            (_position(capture), bool(capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME))) for _ in iter(capture.grab, False)
        ]
    if not packets:
        raise ValueError("it has 0 frames")
    seconds = np.unique([second for second, _ in packets])
    timed = len(packets) == 1 or len(seconds) > len(packets) / 2
    if not timed:
        seconds = np.arange(len(packets)) / _checked_fps(fps)
    contents = _Contents(
        seconds=seconds - seconds[0],
        keys=np.flatnonzero(np.isin(seconds, [second for second, is_key in packets if is_key])),
        offset=seconds[0],
        timed=timed,
        fps=fps,
    )
    shown = contents.times().length / contents.times().clock
    is_short = len(seconds) < (1 - TOLERATED_SHORTAGE) * stated and shown * fps < (1 - TOLERATED_SHORTAGE) * stated
    if is_short and not _is_whole_matroska(file):
        raise ValueError(f"it ends after {len(seconds)} of {stated} frames")
    return contents


def _is_whole_matroska(file: Path | bytes) -> bool:
    """Returns True for an MKV or WebM file that has all bytes that it states. Its sound may be longer than its pictures."""
    with opened(file) as stream:
        head = stream.read(4096)
        size = stream.seek(0, io.SEEK_END)
    place = head.find(b"\x18\x53\x80\x67") + 4  # the segment, which holds all of the file after its head
    if not head.startswith(b"\x1aE\xdf\xa3") or not 4 < place < len(head) - 8 or not head[place]:
        return False
    width = 9 - head[place].bit_length()  # bytes of the segment's size, whose first bits say how many there are
    stated = int.from_bytes(head[place : place + width], "big") - (1 << 7 * width)
    return stated < (1 << 7 * width) - 1 and place + width + stated <= size  # with all bits set, the size is unknown


@contextmanager
def _capture(file: Path | bytes) -> Iterator[Any]:
    """Opens OpenCV's reader of a file, without its messages on the terminal."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # FFmpeg takes `12:30.mp4` for an address, but no absolute path.
    stream: Any = io.BytesIO(file) if isinstance(file, bytes) else str(file.absolute())
    capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise ValueError(f"it is damaged, or no video: it is {kind_of_file(file)}")
        yield capture
    finally:
        capture.release()


def _codec(file: Path | bytes) -> str:
    import cv2

    with _capture(file) as capture:
        return int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1").strip()


def _position(capture: Any) -> float:
    """Returns the time of the frame or packet that was read last, in seconds."""
    import cv2

    return float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000


def _read_frames(
    file: Path | bytes, numbers: Sequence[int], contents: _Contents, sampling: FrameSampling
) -> tuple[list[np.ndarray], float]:
    """Returns frames [H, W, 3] up to the end of the video, and the time of the last frame that was read."""
    for jumps in (True, False):
        frames: list[np.ndarray] = []
        with _capture(file) as capture:
            reader = _Reader(capture, contents)
            for number in numbers:
                if jumps:
                    reader.jump_before(number)
                frame = reader.frame_at(number)
                if frame is None:
                    break
                frames.append(_scaled(frame, sampling))
        if len(frames) == len(numbers) or not reader.has_jumped:
            break
    return frames, reader.now


class _Reader:
    """Reads frames in order. It decodes all in between, or jumps to a key frame."""

    def __init__(self, capture: Any, contents: _Contents) -> None:
        self._capture, self._contents = capture, contents
        self._number = -1
        self.now = -math.inf
        """Time of the frame that was read last."""
        self.has_jumped = False

    def frame_at(self, number: int) -> np.ndarray | None:
        """Returns a frame [H, W, 3] after the last one, or None if it cannot be read.

        After a jump it must have its time exactly. Else it is the first that is not earlier, as some packets hold no frame, and
        some AVI files have the times of packets.
        """
        seconds = self._contents.seconds
        latest = seconds[number if self.has_jumped else min(number + 1, len(seconds) - 1)]
        while self._advance():
            if self.now >= seconds[number] - SAME_TIME:
                if self.now > latest + SAME_TIME:
                    return None
                is_whole, frame = self._capture.retrieve()
                return frame[:, :, ::-1] if is_whole else None  # OpenCV has blue first
        return None

    def jump_before(self, number: int) -> None:
        """Goes to the last key frame before a frame, if that is shorter than decoding all in between."""
        import cv2

        contents = self._contents
        keys = contents.keys[contents.keys < number - OPENCV_LEAD - 2]
        if not contents.timed or not contents.fps or not len(keys) or contents.seconds[keys[-1]] <= self.now:
            return
        # OpenCV goes to the key frame that is some frames before its aim, and reads as many frames as should be in between.
        aim = contents.seconds[keys[-1]] + contents.offset + (OPENCV_LEAD + 1) / contents.fps
        self._capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * aim)
        self.has_jumped = True

    def _advance(self) -> bool:
        if not self._capture.grab():
            return False
        self._number += 1
        contents, now = self._contents, -math.inf
        if contents.timed:
            now = _position(self._capture) - contents.offset
        if now <= self.now and not self.has_jumped:  # the last frames of some AVI files come without times
            now = float(contents.seconds[min(self._number, len(contents.seconds) - 1)])
        self.now = now
        return True


def _scaled(frame: np.ndarray, sampling: FrameSampling) -> np.ndarray:
    """Returns a frame [H, W, 3] of at most `max_pixels`."""
    if frame.ndim != 3 or frame.shape[0] * frame.shape[1] <= sampling.max_pixels:
        return frame
    height, width = frame.shape[:2]
    scale = math.sqrt(sampling.max_pixels / (height * width))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC))


def _as_video(frames: Sequence[np.ndarray], times: FrameTimes, numbers: Sequence[int]) -> Video:
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"its frames are of different sizes: {' and '.join(map(str, sorted(sizes)))}")
    ticks = tuple(times.ticks[list(numbers)].tolist())
    return _checked(Video(frames=np.stack(frames), fps=times.clock, frame_indices=ticks))


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
