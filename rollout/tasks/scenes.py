"""Generated scenes: coloured shapes on a plain ground, to be counted or to be found.

    how many red?  -> 3                      counting among others, so that the sum of all shapes gives nothing away
    where is blue? -> [250,125,500,375]      the box of the only shape of its colour, in [0, 1000] as Qwen3-VL has it

Shapes lie in cells of a grid, at a place and of a size of their own there; grounds and shades differ from scene to scene. Always
guessing the commonest count is right in one of six.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw

from rollout.data.prompts import column_mapping

Split = Literal["train", "test"]
Question = Literal["count", "box"]

SIDE = 96
"""Pixels of a scene: 3 × 3 of Qwen3-VL's merged tokens."""
CELL = 24
"""Pixels of a cell; a shape of a counting scene lies in one, with 1 to 4 pixels to spare."""
UNIT = 12
"""Pixels that a box's edges are multiples of: 125 of the 1,000."""
MOST = 5
COLORS = {"red": (220, 50, 40), "green": (50, 170, 60), "blue": (50, 80, 220), "yellow": (235, 200, 40)}

count_prompt = column_mapping(id="id", task="count")
box_prompt = column_mapping(id="id", task="box")


def scenes(split: Split, question: Question, *, num_prompts: int = 4_000, seed: int = 0) -> Dataset:
    """Draws prompts; equal arguments give equal prompts, in any process.

    Args:
        split: `"train"` or `"test"`: no scene of the one is in the other.
        question: What is asked.
        num_prompts: Rows.
        seed: Seeds the draw.

    Returns:
        Columns `id`, `question`, `answer`, `color`, `scene` (a seed of its own); and `image`, drawn when the row is read.

    Raises:
        ValueError: An argument is out of range.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if question not in ("count", "box"):
        raise ValueError(f"question must be 'count' or 'box', got {question!r}")
    if num_prompts < 1:
        raise ValueError(f"num_prompts must be >= 1, got {num_prompts}")
    rng = np.random.default_rng([seed, split == "test", question == "box"])
    # Even numbers for training, odd ones held out: two scenes are alike where their numbers are.
    numbers = (2 * rng.integers(0, 2**30, num_prompts) + (split == "test")).tolist()
    describe: Callable[[int], dict[str, Any]] = _count if question == "count" else _box
    told = [describe(number) for number in numbers]
    ask = "how many {}?" if question == "count" else "where is {}?"
    columns = {
        "id": [f"{question}-{split}-{number}" for number in range(num_prompts)],
        "question": [ask.format(each["color"]) for each in told],
        "answer": [each["answer"] for each in told],
        "color": [each["color"] for each in told],
        "scene": numbers,
    }
    return Dataset.from_dict(columns).with_transform(partial(_draw_images, describe))


def _count(number: int) -> dict[str, Any]:
    """0 to 5 shapes of the colour that is asked for, and 0 to 5 of others."""
    rng = np.random.default_rng(number)
    color, other, third = rng.permutation(list(COLORS))[:3].tolist()
    wanted, others = (int(n) for n in rng.integers(0, MOST + 1, 2))
    cells = rng.permutation((SIDE // CELL) ** 2)[: wanted + others].tolist()
    names = [color] * wanted + rng.choice([other, third], others).tolist()
    shapes = []
    for cell, name in zip(cells, names, strict=True):
        side = int(rng.integers(CELL - 8, CELL - 1))
        x, y = (CELL * place + int(rng.integers(0, CELL - side)) for place in (cell % 4, cell // 4))
        shapes.append((name, int(rng.integers(2)), (x, y, x + side, y + side)))
    return {"color": color, "answer": str(wanted), "shapes": shapes, "rng": rng}


def _box(number: int) -> dict[str, Any]:
    """One shape each of three colours, apart from one another; one of them is asked for."""
    rng = np.random.default_rng(number)
    names = rng.permutation(list(COLORS))[:3].tolist()
    boxes: list[tuple[int, int, int, int]] = []
    while len(boxes) < len(names):
        width, height = (UNIT * int(n) for n in rng.integers(2, 5, 2))
        x, y = (UNIT * int(rng.integers(0, (SIDE - side) // UNIT + 1)) for side in (width, height))
        box = (x, y, x + width, y + height)
        if not any(_overlap(box, other) for other in boxes):
            boxes.append(box)
    shapes = [(name, int(rng.integers(2)), box) for name, box in zip(names, boxes, strict=True)]
    answer = f"[{','.join(str(round(edge / SIDE * 1000)) for edge in boxes[0])}]"
    return {"color": names[0], "answer": answer, "shapes": shapes, "rng": rng}


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw(scene: dict[str, Any]) -> Image.Image:
    """Disks and rectangles, as far as their box; the ground and every shape in a shade of their own."""
    rng = scene["rng"]
    picture = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in rng.integers(0, 60, 3)))
    pen = ImageDraw.Draw(picture)
    for name, round_one, (left, top, right, bottom) in scene["shapes"]:
        shade = tuple(int(np.clip(value + rng.integers(-25, 26), 0, 255)) for value in COLORS[name])
        draw = pen.ellipse if round_one else pen.rectangle
        draw((left, top, right - 1, bottom - 1), fill=shade)
    return picture


def _draw_images(describe: Callable[[int], dict[str, Any]], rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if "scene" not in rows:  # someone reads a single other column
        return rows
    return {**rows, "image": [_draw(describe(number)) for number in rows["scene"]]}
