"""Generated scenes: coloured shapes on a plain ground, to be counted or to be found.

    how many red?  -> 3                      counts shapes among others, so that the number of all shapes does not help
    where is blue? -> [250,125,500,375]      the box of the only shape of its colour, in Qwen3-VL's coordinates

Shapes lie in cells of a grid, with random places and sizes there. Grounds and shades differ from scene to scene. Always guessing
the commonest count is right in one of six.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
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
"""Pixels. A box's edges are multiples of it: of 125 in coordinates."""
MOST = 5
"""Most shapes of the asked colour, and of the others together."""
COLORS = {"red": (220, 50, 40), "green": (50, 170, 60), "blue": (50, 80, 220), "yellow": (235, 200, 40)}

count_prompt = column_mapping(id="id", task="count")
box_prompt = column_mapping(id="id", task="box")


def scenes(split: Split, question: Question, *, num_prompts: int = 4_000, seed: int = 0) -> Dataset:
    """Draws prompts; equal arguments give equal prompts, in any process.

    Args:
        split: `"train"` or `"test"`: they have no scene in common.
        question: Counting, or a box.
        num_prompts: Rows.
        seed: Seeds the draw.

    Returns:
        Columns `id`, `question`, `answer`, `color`, `scene` (the scene's seed); and `image`, drawn when the row is read.

    Raises:
        ValueError: If an argument is out of range.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if question not in ("count", "box"):
        raise ValueError(f"question must be 'count' or 'box', got {question!r}")
    if num_prompts < 1:
        raise ValueError(f"num_prompts must be >= 1, got {num_prompts}")
    rng = np.random.default_rng([seed, split == "test", question == "box"])
    # Even numbers for training, odd ones held out: equal numbers make equal scenes.
    numbers = (2 * rng.integers(0, 2**30, num_prompts) + (split == "test")).tolist()
    describe: Callable[[int], dict[str, Any]] = _count if question == "count" else _box
    described = [_asked(describe, number) for number in numbers]
    ask = "how many {}?" if question == "count" else "where is {}?"
    columns = {
        "id": [f"{question}-{split}-{number}" for number in range(num_prompts)],
        "question": [ask.format(color) for color, _ in described],
        "answer": [answer for _, answer in described],
        "color": [color for color, _ in described],
        "scene": numbers,
    }
    return Dataset.from_dict(columns).with_transform(partial(_draw_images, describe))


@lru_cache(maxsize=1 << 15)  # the same scenes are drawn for several policies of one process
def _asked(describe: Callable[[int], dict[str, Any]], number: int) -> tuple[str, str]:
    """Returns the colour that a scene's question names, and its answer."""
    scene = describe(number)
    return scene["color"], scene["answer"]


def _count(number: int) -> dict[str, Any]:
    """Draws 0 to 5 shapes of the asked colour, and 0 to 5 of others."""
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
    """Draws three separate shapes of different colours, and asks for one of them."""
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
    """Draws disks and rectangles that fill their boxes. The ground and every shape have random shades."""
    rng = scene["rng"]
    picture = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in rng.integers(0, 60, 3)))
    pen = ImageDraw.Draw(picture)
    for name, round_one, (left, top, right, bottom) in scene["shapes"]:
        shade = tuple(int(np.clip(value + rng.integers(-25, 26), 0, 255)) for value in COLORS[name])
        draw = pen.ellipse if round_one else pen.rectangle
        draw((left, top, right - 1, bottom - 1), fill=shade)
    return picture


def _draw_images(describe: Callable[[int], dict[str, Any]], rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if "scene" not in rows:  # another single column is read
        return rows
    return {**rows, "image": [_draw(describe(number)) for number in rows["scene"]]}
