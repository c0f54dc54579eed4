"""Handwritten digits (scikit-learn's, BSD) in so fine a texture that a small picture of them is grey: one must look closer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rollout.environments import ZoomTool
from rollout.tasks.digit_sums import Split, digit_ids_of, small_handwriting
from rollout.types import Completion, Observation, Prompt

TILES = "abcd"
"""The four parts of a picture, row by row."""
PER_SIDE = 2
TILE = 64
"""Pixels of a tile's sides."""
GREY = 120
"""Average of the tile with the digit. The others are black."""


def fine_print(split: Split, num_prompts: int = 20_000, seed: int = 0) -> Sequence[Mapping[str, Any]]:
    """Returns rows with a picture, 128 × 128, and one digit in one of its four tiles. At half the size the tile is plain grey.

    Args:
        split: The split of the digits, as in `digit_sums`.
        num_prompts: Rows.
        seed: Seeds the draw.

    Returns:
        Columns `id`, `image`, `answer` (the digit) and `tile` (a letter). The picture is drawn when the row is read.
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
        top, left = (TILE * place for place in divmod(tile, PER_SIDE))
        canvas[top : top + TILE, left : left + TILE] = written_in_texture(picture)
        return {
            "id": f"fine_print-{self._split}-{index}",
            "image": Image.fromarray(canvas).convert("RGB"),
            "answer": str(digit),
            "tile": TILES[tile],
        }


def written_in_texture(picture: np.ndarray) -> np.ndarray:
    """Draws a digit [8, 8] on a tile [64, 64]. The brighter its pixel, the stronger the checker pattern; the average stays grey."""
    strength = np.kron(picture / 255, np.ones((TILE // 8, TILE // 8)))
    checkered = np.indices((TILE, TILE)).sum(axis=0) % 2 * 2 - 1
    return np.round(GREY * (1 + strength * checkered)).astype(np.uint8)


def to_prompt(row: Mapping[str, Any]) -> Prompt:
    """Returns a question about the picture."""
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    return Prompt(
        id=row["id"],
        messages=[{"role": "user", "content": content}],
        images=[row["image"]],
        answer=row["answer"],
        columns={"tile": row["tile"], "tool_calls": 1},
    )


def read_call(text: str) -> Mapping[str, Any] | None:
    """Reads the small policy's call: `zb` is the tile b. Calls are short, since long ones would only cost time.

    Raises:
        ValueError: If there is no such tile.
    """
    if not text.startswith("z"):
        return None
    if len(text) != 2 or text[1] not in TILES:
        raise ValueError("z and a letter from a to d")
    row, column = divmod(TILES.index(text[1]), PER_SIDE)
    side = 1000 // PER_SIDE
    return {"bbox_2d": [side * column, side * row, side * (column + 1), side * (row + 1)]}


def magnifier() -> ZoomTool:
    """Returns the tool that shows a tile in the size of the whole picture."""
    return ZoomTool(read_call, min_pixels=TILE * TILE)


def half_informed(prompt: Prompt) -> Sequence[str | Observation]:
    """Returns the turns of a demonstration that uses the tool, but rarely on the right tile.

    Three times in ten a digit is guessed at once. Otherwise a tile is shown: in three of ten cases the right one, else a random
    one. The digit is read if it is there, and guessed if not.
    """
    rng = random.Random(prompt.id)
    guess = str(rng.randrange(10))
    if rng.random() < 0.3:
        return [guess]
    tile = prompt.columns["tile"] if rng.random() < 0.3 else rng.choice(TILES)
    tool = magnifier()
    tool.reset(prompt)
    seen = tool.step(Completion(text=f"z{tile}"))
    assert isinstance(seen, Observation), "the tool returns a picture"
    return [f"z{tile}", seen, prompt.answer if tile == prompt.columns["tile"] else guess]
