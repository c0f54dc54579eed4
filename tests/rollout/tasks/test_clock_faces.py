"""Generated clock faces: both hands are where the time says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewards import clock_time
from rollout import Completion
from rollout.data.prompts import prompts_from
from rollout.tasks.clock_faces import SIDE, clock_faces, to_prompt


def brightness(image: np.ndarray, turn: float, radius: float) -> float:
    """Of the pixel at a place on the dial; `turn` from 0 upwards, clockwise, to 1."""
    x = SIDE / 2 + radius * SIDE * math.sin(2 * math.pi * turn)
    y = SIDE / 2 - radius * SIDE * math.cos(2 * math.pi * turn)
    return float(image[int(y), int(x)].mean())


def test_the_hands_are_where_the_answer_says():
    for row in clock_faces("train", num_prompts=60):
        image = np.asarray(row["image"]).astype(int)
        hours, minutes = (int(part) for part in row["answer"].split(":"))
        hand_turns = {"hour": ((hours % 12) * 60 + minutes) / 720, "minute": minutes / 60}
        ground = np.median([brightness(image, (n + 0.5) / 12 + 1 / 48, 0.2) for n in range(12)])
        for hand, radius in (("hour", 0.15), ("minute", 0.27)):
            assert abs(brightness(image, hand_turns[hand], radius) - ground) > 60, (row["answer"], hand)


def test_all_48_times_come_and_none_often():
    answers, counts = np.unique(
        clock_faces("test", num_prompts=4000).with_format(None)["answer"][:], return_counts=True
    )
    assert len(answers) == 48
    assert counts.max() / 4000 < 0.035  # 1/48 = .021, and chance
    assert {"12:00", "12:45", "1:15"} <= set(answers.tolist())


def test_hours_alone_are_asked_for_by_sixty_minutes():
    assert {answer.split(":")[1] for answer in clock_faces("train", minutes=60, num_prompts=99)["answer"][:]} == {"00"}


def test_no_face_is_in_both_splits_and_equal_seeds_give_equal_faces():
    one, same, other = (clock_faces("train", num_prompts=50, seed=seed) for seed in (0, 0, 1))
    assert one["face"][:] == same["face"][:] != other["face"][:]
    assert np.array_equal(np.asarray(one[3]["image"]), np.asarray(same[3]["image"]))
    held_out = clock_faces("test", num_prompts=50)["face"][:]
    assert all(face % 2 == 0 for face in one["face"][:]) and all(face % 2 == 1 for face in held_out)


def test_the_verifier_accepts_the_time_and_no_other():
    prompt = prompts_from(clock_faces("test", num_prompts=5), to_prompt)[0]
    assert prompt.task == "clock" and [image.size for image in prompt.images] == [(SIDE, SIDE)]
    assert clock_time(prompt, Completion(text=prompt.answer)) == 1.0
    hours, minutes = prompt.answer.split(":")
    assert clock_time(prompt, Completion(text=f"{int(hours) % 12 + 1}:{minutes}")) == 0.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"split": "dev"}, "split must be 'train' or 'test', got 'dev'"),
        ({"split": "train", "minutes": 7}, "minutes must divide 60, got 7"),
        ({"split": "train", "num_prompts": 0}, "num_prompts must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        clock_faces(**options)
