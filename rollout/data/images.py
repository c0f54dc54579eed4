"""Opens pictures: upright RGB, and no larger than the policy sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.JpegImagePlugin import JpegImageFile

from rollout.data.files import file_of, kind_of_file, opened

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

Fit: TypeAlias = Callable[[Size], Size]
"""Returns the size at which the policy sees a picture of some size."""

DRAFT_GAP = 1.5
"""Least width of a JPEG as it is decoded, over the width that is needed. Its pixels then differ by 0.3 % in the mean."""
_DECODING = [Lock() for _ in range(64)]
"""Rows may share a PIL image, which is decoded at its first use. Two threads must not decode it at once."""


def open_image(source: Any, fit: Fit | None = None) -> Image.Image:
    """Decodes an image to upright RGB, with transparent pixels on white. Its `info["original_size"]` is its size in the file.

    Args:
        source: A PIL image, or what `file_of` takes.
        fit: The picture gets this size if it has fewer pixels.
    """
    source = file_of(source)
    if isinstance(source, Path | bytes):
        return _of_file(source, fit)
    if not isinstance(source, Image.Image):
        raise ValueError(
            f'expected a PIL image, a path, bytes or {{"bytes": ..., "path": ...}}, got {type(source).__name__}'
        )
    with _DECODING[(id(source) >> 4) % len(_DECODING)]:
        known, image = source.info.get("original_size"), as_rgb(source.copy())
    original = known if isinstance(known, tuple) else image.size  # a PNG may hold a text of this name
    return _shrunk(image, fit(image.size) if fit else image.size, original)


def _of_file(source: Path | bytes, fit: Fit | None) -> Image.Image:
    with opened(source) as file:
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            named = "it" if isinstance(source, bytes) else source
            raise ValueError(f"{named} is {kind_of_file(source)}, not a picture that can be read") from None
        whole = _draft(image, fit) if fit and isinstance(image, JpegImageFile) else None
        rgb = as_rgb(image)
        original = whole or rgb.size
        return _shrunk(rgb, fit(original) if fit else original, original)


def _draft(image: JpegImageFile, fit: Fit) -> Size:
    """Lets a JPEG be decoded at a half, a quarter or an eighth of its size, if this is still well above the one that is needed.

    Returns the size of the whole picture, upright.
    """
    is_on_its_side = image.getexif().get(Base.Orientation) in (5, 6, 7, 8)
    original = (image.height, image.width) if is_on_its_side else image.size
    width, height = fit(original)
    if is_on_its_side:
        width, height = height, width
    image.draft(None, (int(DRAFT_GAP * width), int(DRAFT_GAP * height)))
    return original


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns the image upright and in RGB, with transparent pixels on white. It may change the image itself."""
    if 0 in image.size:
        raise ValueError(f"it has {image.width} × {image.height} pixels")
    if image.mode in ("I", "F"):  # PIL would cut all values above 255, and return white
        raise ValueError(f"its mode is {image.mode}, without defined black and white: convert it to L or RGB")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        # Cameras and scanners store 12 bits in 16: read as 16 they would be nearly black.
        image = Image.fromarray((values // (257 if values.max() > 4095 else 16)).astype(np.uint8))
    ImageOps.exif_transpose(image, in_place=True)  # a camera may store a photo rotated
    if image.has_transparency_data:  # a chart with a transparent background would otherwise turn black on black
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _shrunk(image: Image.Image, size: Size, original: Size) -> Image.Image:
    if size[0] * size[1] < image.width * image.height:
        image = image.resize(size, Image.Resampling.BICUBIC)
    elif isinstance(image, ImageFile.ImageFile):
        image = image.copy()  # without the file
    image.info["original_size"] = original
    return image
