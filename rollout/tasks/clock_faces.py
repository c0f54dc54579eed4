"""Generated clock faces, to the quarter of an hour: `3:45`.

Dials, hands and colours differ from face to face. Guessing is right in one of 48 cases. A policy that reads one hand only is right
in one of 12 or of 4.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw

from rollout.data.prompts import column_mapping

Split = Literal["train", "test"]

SIDE = 64
"""Pixels: 2 × 2 of Qwen3-VL's merged tokens."""
SMOOTH = 4
"""Faces are drawn so many times larger and scaled down, which smooths slanting hands."""

to_prompt = column_mapping(id="id", task="clock")


def clock_faces(split: Split, *, minutes: int = 15, num_prompts: int = 4_000, seed: int = 0) -> Dataset:
    """Draws prompts; equal arguments give equal prompts, in any process.

    Args:
        split: `"train"` or `"test"`: they have no face in common.
        minutes: Times are multiples of so many minutes. A divisor of 60.
        num_prompts: Rows.
        seed: Seeds the draw.

    Returns:
        Columns `id`, `question`, `answer` (`"3:45"`), `face` (the face's seed), `minute` (of twelve hours); and `image`, drawn when
        the row is read.

    Raises:
        ValueError: If an argument is out of range.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if minutes < 1 or 60 % minutes:
        raise ValueError(f"minutes must divide 60, got {minutes}")
    if num_prompts < 1:
        raise ValueError(f"num_prompts must be >= 1, got {num_prompts}")
    rng = np.random.default_rng([seed, split == "test"])
    # Even numbers for training, odd ones held out: equal numbers make equal faces.
    faces = (2 * rng.integers(0, 2**30, num_prompts) + (split == "test")).tolist()
    times = (minutes * rng.integers(0, 720 // minutes, num_prompts)).tolist()
    columns = {
        "id": [f"clock-{split}-{number}" for number in range(num_prompts)],
        "question": ["time?"] * num_prompts,
        "answer": [f"{time // 60 or 12}:{time % 60:02d}" for time in times],
        "face": faces,
        "minute": times,
    }
    return Dataset.from_dict(columns).with_transform(_draw_images)


def _draw(face: int, minute: int) -> Image.Image:
    rng = np.random.default_rng(face)
    side = SIDE * SMOOTH
    dark, light = rng.integers(0, 70, 3), rng.integers(185, 256, 3)
    ground, ink = (light, dark) if rng.integers(2) else (dark, light)
    picture = Image.new("RGB", (side, side), _color(ground))
    pen = ImageDraw.Draw(picture)
    middle, radius = side / 2, side * rng.uniform(0.42, 0.48)
    rim = [middle - radius, middle - radius, middle + radius, middle + radius]

    def line(turn: float, start: float, end: float, width: int) -> None:
        """Draws from the middle outwards. `turn` is 0 upwards and goes clockwise to 1."""
        x, y = math.sin(2 * math.pi * turn), -math.cos(2 * math.pi * turn)
        ends = [(middle + x * length, middle + y * length) for length in (start, end)]
        pen.line(ends, fill=_color(ink), width=width)

    pen.ellipse(rim, outline=_color(ink), width=int(rng.integers(4, 9)))
    for hour in range(12):
        inner = 0.80 if hour % 3 == 0 else 0.88
        line(hour / 12, radius * inner, radius * 0.95, 8 if hour % 3 == 0 else 4)
    line(minute / 720, 0, radius * rng.uniform(0.42, 0.52), int(rng.integers(14, 19)))
    line(minute % 60 / 60, 0, radius * rng.uniform(0.72, 0.80), int(rng.integers(6, 10)))
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _color(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = values.tolist()
    return red, green, blue


def _draw_images(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if not {"face", "minute"} <= rows.keys():  # another single column is read
        return rows
    return {**rows, "image": [_draw(*each) for each in zip(rows["face"], rows["minute"], strict=True)]}
