"""Handwritten digits (scikit-learn's, BSD) too small to be read in a large picture: one must look closer to tell which it is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rollout.environments import ZoomTool
from rollout.sources.digit_sums import Split, digit_ids_of, small_handwriting
from rollout.types import Completion, Observation, Prompt

TILES = "abcdefghijklmnop"
"""The sixteen parts of a picture, row by row."""
PER_SIDE = 4
TILE = 64
"""Pixels of a tile's sides; the digit in the middle of one of them has 8 × 8."""


def tiny_digits(split: Split, num_prompts: int = 20_000, seed: int = 0) -> Sequence[Mapping[str, Any]]:
    """Rows of a picture, 256 × 256, with one digit in one of its sixteen tiles.

    Args:
        split: Which digits, as in `digit_sums`.
        num_prompts: Rows.
        seed: Seeds the draw.

    Returns:
        Columns `id`, `image`, `answer` (the digit) and `tile` (a letter); the picture is drawn when the row is read.
    """
    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    ids = rng.choice(digit_ids_of(split), size=num_prompts)
    return _Rows(split, ids, rng.integers(len(TILES), size=num_prompts))


class _Rows(Sequence[Mapping[str, Any]]):
    def __init__(self, split: str, ids: np.ndarray, tiles: np.ndarray) -> None:
        self._split, self._ids, self._tiles = split, ids, tiles

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Any:
        pictures, digits = small_handwriting()
        picture, digit = pictures[self._ids[index]], int(digits[self._ids[index]])
        tile = int(self._tiles[index])
        canvas = np.zeros((PER_SIDE * TILE, PER_SIDE * TILE), np.uint8)
        top, left = (TILE * place + (TILE - len(picture)) // 2 for place in divmod(tile, PER_SIDE))
        canvas[top : top + len(picture), left : left + len(picture)] = picture
        return {
            "id": f"tiny_digits-{self._split}-{index}",
            "image": Image.fromarray(canvas).convert("RGB"),
            "answer": str(digit),
            "tile": TILES[tile],
        }


def to_prompt(row: Mapping[str, Any]) -> Prompt:
    """A question about the picture."""
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    return Prompt(
        id=row["id"],
        messages=[{"role": "user", "content": content}],
        images=[row["image"]],
        answer=row["answer"],
        columns={"tile": row["tile"]},
    )


def read_call(text: str) -> Mapping[str, Any] | None:
    """How the small policy asks for a tile: `zk` is the tile k. Long calls would cost it time, not understanding.

    Raises:
        ValueError: There is no such tile.
    """
    if not text.startswith("z"):
        return None
    if len(text) != 2 or text[1] not in TILES:
        raise ValueError("z and a letter from a to p")
    row, column = divmod(TILES.index(text[1]), PER_SIDE)
    side = 1000 // PER_SIDE
    return {"bbox_2d": [side * column, side * row, side * (column + 1), side * (row + 1)]}


def magnifier() -> ZoomTool:
    """The tool with which a tile is shown as large as the whole picture was."""
    return ZoomTool(read_call, min_pixels=TILE * TILE)


def half_informed(prompt: Prompt) -> Sequence[str | Observation]:
    """What someone does who knows the tool and the digits, but hardly what the tool is for.

    Half of the time a digit is guessed at once. Else a tile is looked at, one time in four the right one; the digit is read if it
    is there, and guessed if not.
    """
    rng = random.Random(prompt.id)
    guess = str(rng.randrange(10))
    if rng.random() < 0.5:
        return [guess]
    tile = prompt.columns["tile"] if rng.random() < 0.25 else rng.choice(TILES)
    tool = magnifier()
    tool.reset(prompt)
    seen = tool.step(Completion(text=f"z{tile}"))
    assert isinstance(seen, Observation), "a call of the tool is answered by a picture"
    return [f"z{tile}", seen, prompt.answer if tile == prompt.columns["tile"] else guess]
