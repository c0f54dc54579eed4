"""Digits that only show at full size: what is in the small picture, what the tool brings to light, and what is demonstrated."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rollout.data.prompts import prompts_from
from rollout.tasks.fine_print import GREY, TILE, TILES, fine_print, half_informed, magnifier, read_call, to_prompt
from rollout.types import Completion, Observation

ROWS = fine_print("test", num_prompts=200)
PROMPTS = prompts_from(ROWS, to_prompt)


def small(picture: Image.Image) -> np.ndarray:
    """As the policy sees it: half the size, one channel."""
    return np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC))[:, :, 0].astype(int)


def looked(prompt, call: str) -> Observation:
    tool = magnifier()
    tool.reset(prompt)
    return tool.step(Completion(text=call))


def test_the_small_picture_shows_where_the_digit_is_and_not_which() -> None:
    for row in ROWS:
        tile = TILES.index(row["tile"])
        top, left = 32 * (tile // 2), 32 * (tile % 2)
        picture = small(row["image"])
        inner = picture[top + 4 : top + 28, left + 4 : left + 28]
        assert abs(inner - GREY).max() <= 3, "three of 255 shades are what is left of the digit"
        picture[max(0, top - 4) : top + 36, max(0, left - 4) : left + 36] = 0
        assert picture.max() == 0, "and nothing is anywhere else"


def test_the_right_tile_at_full_size_shows_the_digit() -> None:
    for prompt in PROMPTS[:20]:
        (part,) = looked(prompt, f"z{prompt.columns['tile']}").images
        assert part.size == (TILE, TILE)
        strength = abs(np.asarray(part)[:, :, 0].astype(int) - GREY)
        # Eight by eight blocks, each as strongly checkered as the handwriting is bright there.
        blocks = strength.reshape(8, 8, 8, 8).transpose(0, 2, 1, 3).reshape(64, 64)
        assert (blocks.max(axis=1) - blocks.min(axis=1)).max() <= 1
        assert blocks.max() > 100


def test_another_tile_shows_nothing() -> None:
    prompt = PROMPTS[0]
    other = next(tile for tile in TILES if tile != prompt.columns["tile"])
    assert not np.asarray(looked(prompt, f"z{other}").images[0]).any()


@pytest.mark.parametrize("text", ["ze", "z", "zab", "z "])
def test_a_call_of_no_tile_is_told_so(text: str) -> None:
    assert "z and a letter from a to d" in looked(PROMPTS[0], text).text
    with pytest.raises(ValueError, match="from a to d"):
        read_call(text)


def test_the_cold_start_guesses_or_looks_somewhere_and_reads_what_is_there() -> None:
    shown = [(prompt, half_informed(prompt)) for prompt in PROMPTS]
    assert shown[0][1][0] == half_informed(PROMPTS[0])[0], "the same at each call"
    looks = [(prompt, parts) for prompt, parts in shown if len(parts) == 3]
    assert all(len(parts) in (1, 3) for _, parts in shown)
    right = [(prompt, parts) for prompt, parts in looks if parts[0] == f"z{prompt.columns['tile']}"]
    # Of 200, seven in ten look, and of these .3 + .7 / 4 at the right tile; three standard deviations.
    assert abs(len(looks) / 200 - 0.7) < 0.1
    assert abs(len(right) / len(looks) - 0.475) < 0.13
    assert all(parts[2] == prompt.answer for prompt, parts in right)


def test_the_digits_of_the_two_splits_are_never_the_same() -> None:
    written = {
        split: {
            looked(prompt, f"z{prompt.columns['tile']}").images[0].tobytes()
            for prompt in prompts_from(fine_print(split, 300), to_prompt)
        }
        for split in ("train", "test")
    }
    assert not written["train"] & written["test"]
