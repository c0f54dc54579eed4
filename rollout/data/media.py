"""Opens the images and videos of a prompt from any form that a dataset stores them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from PIL import Image

from rollout.data.files import UnreadablePrompt, brief
from rollout.data.images import Fit, open_image
from rollout.data.videos import FrameSampling, open_video
from rollout.types import Video

__all__ = ["Fit", "FrameSampling", "UnreadablePrompt", "brief", "open_images", "open_videos", "undecoded_videos"]

T = TypeVar("T")


def open_images(sources: Sequence[Any], fit: Fit | None = None) -> list[Image.Image]:
    """Decodes images to upright RGB, with transparent pixels on white.

    Args:
        sources: PIL images, paths, the bytes of a file, or `{"bytes": ..., "path": ...}`.
        fit: Returns the size at which the policy sees a picture. A larger picture is shrunk to it; `info["original_size"]` is the
            size before. None shrinks nothing.

    Raises:
        UnreadablePrompt: If one cannot be read. Names the image and the reason.
    """
    return _open_each("image", sources, lambda source: open_image(source, fit))


def open_videos(sources: Sequence[Any], sampling: FrameSampling) -> list[Video]:
    """Decodes the sampled frames of videos.

    Args:
        sources: Paths, the bytes of a file, `{"bytes": ..., "path": ...}`, or `{"frames": ..., "fps": ...}` with PIL images, files
            or an array. "timestamps" in seconds may replace "fps". Videos are returned unchanged.
        sampling: The sampling of frames.

    Raises:
        UnreadablePrompt: If one cannot be read. Names the video and the reason.
    """
    return _open_each("video", sources, lambda source: open_video(source, sampling))


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
