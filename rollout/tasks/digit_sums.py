"""Sums of handwritten digits: a picture of digits side by side, the answer `3+5+9=17`, and the reward.

The handwriting is scikit-learn's `load_digits`: 1,797 real 8x8 images in 17 grey levels, written by 13 people. 397 of them are held
out: training never shows them, under any seed (it does show other digits by the same people).

Always guessing the commonest sum (13 or 14) is right in less than 8 % of prompts with three digits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from rollout.data.prompts import column_mapping
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "test"]

NUM_HELD_OUT = 397
DIGIT_SIZE = 64
"""Pixels: 2x2 of Qwen3-VL's merged tokens (32 pixels each), so no token reads two digits."""

to_prompt = column_mapping(id="id", task="digit_sums")


def digit_sums(split: Split, *, num_digits: int = 3, num_prompts: int = 20_000, seed: int = 0) -> Dataset:
    """Draws prompts; equal arguments give equal prompts, in any process.

    Args:
        split: `"train"` or `"test"`: the handwriting from which digits are drawn, with replacement.
        num_digits: Digits in each picture, at least 1.
        num_prompts: Rows.
        seed: Seeds the draw.

    Returns:
        Columns `id`; `question` (short, since a small policy reads bytes); `answer`, `"3+5+9=17"`; `digits` [num_digits]; `sum`;
        `digit_ids` [num_digits], the places of the digits in `load_digits`. A row also has `image`, an RGB picture of
        64 * num_digits x 64 pixels. It is drawn when the row is read, so 20,000 pictures take neither time nor memory.
        `.with_format(None)` has the columns without it, and reads whole columns fast.

    Raises:
        ValueError: If an argument is out of range.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if num_digits < 1 or num_prompts < 1:
        raise ValueError(f"num_digits and num_prompts must be >= 1, got {num_digits} and {num_prompts}")
    from datasets import Dataset  # imported late: recipes name the reward below before they need data

    pool = digit_ids_of(split)
    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    digit_ids = rng.choice(pool, size=(num_prompts, num_digits))
    digits = _handwriting()[1][digit_ids]
    columns = {
        "id": [f"digit_sums-{split}-{number}" for number in range(num_prompts)],
        "question": ["sum?"] * num_prompts,
        "answer": [f"{'+'.join(map(str, terms))}={sum(terms)}" for terms in digits.tolist()],
        "digits": digits.tolist(),
        "sum": digits.sum(1).tolist(),
        "digit_ids": digit_ids.tolist(),
    }
    return Dataset.from_dict(columns).with_transform(_draw_images)


def sum_is_right(prompt: Prompt, completion: Completion) -> float:
    """Returns 1 if the number after the last `=` is the sum. The terms before it are not checked."""
    return float(completion.text.rpartition("=")[2].strip() == prompt.answer.rpartition("=")[2])


def digit_ids_of(split: Split) -> np.ndarray:
    """Returns [1400] or [397] int, the places in `load_digits` of a split's digits. No seed of a run changes the split."""
    digits = _handwriting()[1]
    order = np.random.default_rng(0).permutation(len(digits))
    by_digit = order[np.argsort(digits[order], kind="stable")]
    # Evenly spread over the sorted digits: each of the ten is held out in proportion.
    places = np.arange(NUM_HELD_OUT) * len(digits) // NUM_HELD_OUT
    return by_digit[places] if split == "test" else np.delete(by_digit, places)


@cache
def _handwriting() -> tuple[np.ndarray, np.ndarray]:
    """Returns images [1797, 64, 64] uint8, bright on black, and their digits [1797] int."""
    small, digits = small_handwriting()
    # Whole blocks, not interpolation: every 16-pixel patch holds exactly 2x2 original pixels.
    scale = DIGIT_SIZE // small.shape[1]
    return small.repeat(scale, axis=1).repeat(scale, axis=2), digits


@cache
def small_handwriting() -> tuple[np.ndarray, np.ndarray]:
    """Returns the original images [1797, 8, 8] uint8, bright on black, and their digits [1797] int."""
    from sklearn.datasets import load_digits  # imported late: it takes a second

    data = load_digits()
    return np.round(data.images * (255 / 16)).astype(np.uint8), data.target


def _draw_images(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if "digit_ids" not in rows:  # another single column is read
        return rows
    images = _handwriting()[0]
    pictures = [Image.fromarray(np.concatenate(images[ids], axis=1)).convert("RGB") for ids in rows["digit_ids"]]
    return {**rows, "image": pictures}
