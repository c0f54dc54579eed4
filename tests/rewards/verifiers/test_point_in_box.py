"""Points that hit what is asked for."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.verifiers.point_in_box import point_in_box
from rollout import Completion, Prompt
from tests.rewards.hostile import HOSTILE

LEFT, RIGHT = [100, 100, 200, 200], [300, 100, 400, 200]
CAT = {"bbox_2d": LEFT, "label": "cat"}
DOG = {"bbox_2d": RIGHT, "label": "dog"}


def score(answer: object, said: object, radius: float | None = None) -> float | Score:
    text = said if isinstance(said, str) else json.dumps(said)
    return point_in_box(radius=radius)(Prompt(id="p-1", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "said", "reward"),
    [
        (LEFT, [150, 150], 1),
        (LEFT, [[150, 150]], 1),
        (LEFT, {"point_2d": [150, 150]}, 1),
        # How a response may give its points: tests/rewards/verifiers/test_shapes.py.
        (LEFT, '```json\n{"point_2d": [150, 150], "label": "cat"}\n```', 1),
        (LEFT, [100, 200], 1),  # the edge is inside
        (LEFT, [99.9, 150], 0),
        (LEFT, [150, 201], 0),
        (LEFT, [350, 150], 0),
        (LEFT, [[150, 150], [350, 150]], 1 / 2),
        (LEFT, [[150, 150], [160, 160]], 1 / 2),  # one point hits one box
        (LEFT, [[150, 150], [1500, 150]], 1 / 2),
        (LEFT, [[150, 150]] * 111, 0),
        (LEFT, [[x, y] for x in range(0, 1000, 100) for y in range(0, 1000, 100)], 1 / 100),  # everywhere
        ([LEFT, RIGHT], [150, 150], 1 / 2),
        ([LEFT, RIGHT], [[350, 150], [150, 150]], 1),
        ([LEFT, RIGHT], [[150, 150], [160, 160]], 1 / 2),
        ([LEFT, [150, 100, 400, 200]], [[180, 150], [120, 150]], 1),  # the first lies in both
        (CAT, {"point_2d": [150, 150], "label": "Cat"}, 1),
        (CAT, {"point_2d": [150, 150], "label": "dog"}, 0),
        (CAT, [150, 150], 1),
        ([CAT, DOG], [{"point_2d": [150, 150], "label": "dog"}, {"point_2d": [350, 150], "label": "cat"}], 0),
        (json.dumps([CAT, DOG]), [[150, 150], [350, 150]], 0),  # which is which?
        ([CAT, DOG], "cat: (150, 150)\ndog: (350, 150)", 1),
        (LEFT, LEFT, 1),  # by its centre
        (LEFT, [100, 100, 900, 900], 0),
        (LEFT, CAT, 1),
        (LEFT, {"action": "left_click", "coordinate": [150, 150]}, 1),
        (LEFT, "click(x=150, y=150)", 1),
        (LEFT, "click(x=350, y=150)", 0),
        ([], "[]", 1),
        ([], [150, 150], 0),
        (LEFT, "[NaN, 150]", 0),
        (LEFT, "", 0),
    ],
)
def test_the_reward_is_the_share_of_boxes_hit(answer: object, said: object, reward: float) -> None:
    assert score(answer, said) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("answer", "said", "reward"),
    [
        ([500, 500], [500, 500], 1),
        ([500, 500], [503, 504], 1),  # 3, 4, 5
        ([500, 500], [503, 505], 0),
        ([[500, 500], [600, 600]], [[600, 600], [500, 500]], 1),
        ([[500, 500], [600, 600]], [500, 500], 1 / 2),
        ({"point_2d": [500, 500], "label": "cat"}, {"point_2d": [500, 500], "label": "dog"}, 0),
        ('{"point_2d": [500, 500]}', "(500, 500)", 1),
    ],
)
def test_with_a_radius_the_reference_is_points(answer: object, said: object, reward: float) -> None:
    assert score(answer, said, radius=5) == reward


def test_a_reference_of_another_kind_is_an_error_that_names_the_option() -> None:
    in_thousandths = "or a list of these, from 0 to 1000 (thousandths of the picture, not pixels)"
    told = "point_in_box cannot read the answer [500, 500] of prompt 'p-1'; give [left, top, right, bottom], "
    assert score([500, 500], [500, 500]) == Score(reward=0.0, error=f"{told}{in_thousandths}; for points, set radius")
    told = "point_in_box cannot read the answer [1, 1, 2, 2] of prompt 'p-1'; give [x, y], "
    assert score([1, 1, 2, 2], [1, 1], radius=5) == Score(
        reward=0.0, error=f"{told}{in_thousandths}; for boxes, set no radius"
    )


@pytest.mark.parametrize("radius", [-1, 1001, float("nan")])
def test_a_radius_is_within_the_picture(radius: float) -> None:
    with pytest.raises(ValueError, match="radius of point_in_box must be from 0 to 1000 thousandths, got"):
        point_in_box(radius=radius)


def test_nothing_hostile_is_rewarded() -> None:
    more = ["```\n" + " " * 90_000, "(1,2)," * 15_000, "(1" + " " * 90_000, "[" + "[150,150]," * 9_000 + "[]]"]
    rewarded = {text[:60]: score(LEFT, text) for text in [*HOSTILE, *more]}
    assert {text: reward for text, reward in rewarded.items() if reward != 0.0} == {}


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score(LEFT, text) == 0.0
