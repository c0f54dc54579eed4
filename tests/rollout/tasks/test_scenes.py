"""Generated scenes: what is asked is to be seen in them, and guessing pays little."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from rewards import box_iou, count
from rollout import Completion
from rollout.data.prompts import prompts_from
from rollout.tasks.scenes import COLORS, box_prompt, count_prompt, scenes


def nearest_color(pixels: np.ndarray) -> np.ndarray:
    """[H, W] which of COLORS each bright pixel has; -1 on the ground, which is darker than 60."""
    distances = np.stack([np.abs(pixels.astype(int) - color).max(-1) for color in COLORS.values()])
    return np.where(distances.min(0) <= 30, distances.argmin(0), -1)


def num_blobs(mask: np.ndarray) -> int:
    """Connected parts, of side neighbours."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, 0
    while left:
        found += 1
        stack = [left.pop()]
        while stack:
            y, x = stack.pop()
            for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    stack.append(neighbour)
    return found


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_counting_scene_shows_as_many_shapes_as_its_answer_says(split):
    rows = scenes(split, "count", num_prompts=40)
    for row in rows:
        which = list(COLORS).index(row["color"])
        # A pixel apart at least: neighbours are two blobs.
        assert num_blobs(nearest_color(np.asarray(row["image"])) == which) == int(row["answer"])


def test_the_box_is_where_the_color_is():
    for row in scenes("train", "box", num_prompts=40):
        ys, xs = np.nonzero(nearest_color(np.asarray(row["image"])) == list(COLORS).index(row["color"]))
        edges = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert json.loads(row["answer"]) == [round(edge / 96 * 1000) for edge in edges]


def test_each_count_is_right_as_often_as_any_other():
    counts = Counter(scenes("train", "count", num_prompts=3000).with_format(None)["answer"][:])
    assert sorted(counts) == ["0", "1", "2", "3", "4", "5"]
    assert max(counts.values()) / 3000 < 0.2  # one in six, and chance


def test_no_scene_is_in_both_splits_and_equal_seeds_give_equal_scenes():
    one, same, other = (scenes("train", "count", num_prompts=50, seed=seed) for seed in (0, 0, 1))
    assert one["scene"][:] == same["scene"][:] != other["scene"][:]
    assert np.array_equal(np.asarray(one[7]["image"]), np.asarray(same[7]["image"]))
    held_out = scenes("test", "count", num_prompts=50)["scene"][:]
    assert all(number % 2 == 0 for number in one["scene"][:]) and all(number % 2 == 1 for number in held_out)


@pytest.mark.parametrize(
    ("question", "to_prompt", "verifier"), [("count", count_prompt, count), ("box", box_prompt, box_iou)]
)
def test_the_verifier_accepts_the_answer_and_not_another_scenes(question, to_prompt, verifier):
    prompts = prompts_from(scenes("test", question, num_prompts=30), to_prompt)
    assert {prompt.task for prompt in prompts} == {question}
    assert [len(prompt.images) for prompt in prompts[:1]] == [1]
    assert isinstance(prompts[0].images[0], Image.Image)
    rewards = [verifier(prompt, Completion(text=prompt.answer)) for prompt in prompts]
    assert [getattr(reward, "reward", reward) for reward in rewards] == [1.0] * 30
    wrong = next(prompt for prompt in prompts if prompt.answer != prompts[0].answer)
    reward = verifier(prompts[0], Completion(text=wrong.answer))
    assert getattr(reward, "reward", reward) < 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("dev", "count"), "split must be 'train' or 'test', got 'dev'"),
        (("train", "sum"), "question must be 'count' or 'box', got 'sum'"),
    ],
)
def test_bad_arguments_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        scenes(*arguments)
    with pytest.raises(ValueError, match="num_prompts must be >= 1, got 0"):
        scenes("train", "box", num_prompts=0)
