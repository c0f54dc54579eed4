"""Boxes that cover those of the reference."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.verifiers.box_iou import box_iou
from rollout import Completion, Prompt
from tests.rewards.hostile import HOSTILE

LEFT, RIGHT = [0, 0, 100, 100], [200, 0, 300, 100]
HALF = [0, 0, 100, 50]  # of LEFT
SHIFTED = [50, 0, 150, 100]  # shares 50 x 100 with LEFT, of 150 x 100 together
CAT = {"bbox_2d": LEFT, "label": "cat"}
DOG = {"bbox_2d": RIGHT, "label": "dog"}


def score(answer: object, said: object, threshold: float | None = None) -> float | Score:
    text = said if isinstance(said, str) else json.dumps(said)
    return box_iou(threshold=threshold)(Prompt(id="b-1", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "said", "reward"),
    [
        (LEFT, LEFT, 1),
        (LEFT, HALF, 1 / 2),
        (HALF, LEFT, 1 / 2),
        (LEFT, SHIFTED, 1 / 3),
        (LEFT, [50, 50, 150, 150], 1 / 7),  # 2,500 of 17,500
        (LEFT, [25, 25, 75, 75], 1 / 4),
        (LEFT, RIGHT, 0),
        (LEFT, [100, 0, 200, 100], 0),  # an edge in common is no area
        (LEFT, [0, 0, 1000, 1000], 1 / 100),
        (LEFT, [[0, 0, 100, 100]] * 2, 1 / 2),  # one too many
        (LEFT, [LEFT, RIGHT], 1 / 2),
        (LEFT, [LEFT] * 10, 1 / 10),
        (LEFT, [LEFT] * 110, 1 / 110),
        (LEFT, [LEFT] * 111, 0),  # 10 for each, and 100 more
        ([LEFT, RIGHT], LEFT, 1 / 2),
        ([LEFT, RIGHT], [LEFT, RIGHT], 1),
        ([LEFT, RIGHT], [RIGHT, LEFT], 1),
        ([LEFT, RIGHT], [LEFT, LEFT], 1 / 2),
        ([LEFT, RIGHT], [HALF, RIGHT], 3 / 4),
        ([LEFT, SHIFTED], [SHIFTED, LEFT], 1),
        (
            [[0, 0, 10, 10], [0, 0, 10, 20]],
            [[0, 0, 10, 20], [0, 0, 10, 40]],
            (1 + 1 / 4) / 2,
        ),  # more than (1/2 + 1/2) / 2
        ([LEFT, RIGHT], [LEFT, [100, 0, 0, 100]], 1 / 2),
        (LEFT, [LEFT, [0, 0, 0, 0]], 1 / 2),  # what cannot be counts all the same
        (LEFT, "[[0, 0, 100, 100], [NaN, 0, 100, 100]]", 1 / 2),
        (CAT, CAT, 1),
        (CAT, {"bbox_2d": LEFT, "label": "  CAT "}, 1),
        (CAT, {"bbox_2d": LEFT, "label": "dog"}, 0),
        (CAT, LEFT, 1),  # no label, no contradiction
        (LEFT, CAT, 1),
        ([CAT, DOG], [RIGHT, LEFT], 0),  # which is which?
        ([CAT, DOG], [CAT, {"bbox_2d": RIGHT, "label": None}], 1 / 2),
        ([CAT, DOG], [CAT, {"bbox_2d": RIGHT, "label": 2}], 1 / 2),
        ([CAT, CAT | {"bbox_2d": RIGHT}], [RIGHT, LEFT], 1),  # both are cats
        ([CAT, DOG], [{"bbox_2d": LEFT, "label": "a grey cat"}, {"bbox_2d": RIGHT, "label": "dog on the right"}], 1),
        ([CAT, DOG], f"cat: {LEFT}\ndog: {RIGHT}", 1),
        ([CAT, DOG], f"dog: {LEFT}\ncat: {RIGHT}", 0),
        ([CAT, DOG], f"I see a cat and a dog. The dog is at {RIGHT}. The cat is at {LEFT}.", 1),
        ([CAT, DOG], f"{LEFT} (cat)\n{RIGHT} (dog)", 1),
        ([CAT, DOG], {"cat": LEFT, "dog": RIGHT}, 1),
        ([CAT, DOG], {"cat": RIGHT, "dog": LEFT}, 0),
        (CAT, f"The animal is at {LEFT}.", 1),
        (LEFT, {"bbox_2d": LEFT, "alternatives": [RIGHT]}, 1 / 2),
        ([], "[]", 1),
        ("[]", "There is no dog in this picture.", 1),
        ([], LEFT, 0),
        ([], f"There is no dog, only {LEFT}.", 0),
        ([], "", 0),
        ([CAT, DOG], [DOG, CAT], 1),
        ([CAT, DOG], [{"bbox_2d": LEFT, "label": "dog"}, {"bbox_2d": RIGHT, "label": "cat"}], 0),
        ([CAT, DOG], [CAT, {"bbox_2d": RIGHT, "label": "cat"}], 1 / 2),
        (json.dumps([CAT, DOG]), [CAT, DOG], 1),
        # How a response may give its boxes: tests/rewards/verifiers/test_shapes.py.
        (LEFT, "<think>[200, 0, 300, 100]</think>```json\n" + json.dumps([CAT]) + "\n```", 1),
        (LEFT, '{"point_2d": [50, 50]}', 0),
        (LEFT, "", 0),
    ],
)
def test_the_reward_is_the_iou_of_the_best_pairs_over_the_number_of_boxes(
    answer: object, said: object, reward: float
) -> None:
    assert score(answer, said) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("answer", "said", "threshold", "reward"),
    [
        (LEFT, HALF, 0.5, 1),
        (LEFT, HALF, 0.51, 0),
        (LEFT, SHIFTED, 0.5, 0),
        (LEFT, [LEFT, RIGHT], 0.5, 1 / 2),
        ([LEFT, RIGHT], [HALF, RIGHT], 0.5, 1),
        ([LEFT, RIGHT], [HALF, RIGHT], 0.9, 1 / 2),
        # The pairs with the greatest sum of IoU would have only one at the threshold: what is maximised is the number found.
        ([[0, 0, 100, 100], [0, 0, 100, 60]], [[0, 0, 100, 60], [0, 0, 100, 35]], 0.55, 1),
        (LEFT, LEFT, 1, 1),
        (LEFT, [0, 0, 100, 99.9], 1, 0),
    ],
)
def test_with_a_threshold_a_box_is_found_or_not(answer: object, said: object, threshold: float, reward: float) -> None:
    assert score(answer, said, threshold) == pytest.approx(reward)


@pytest.mark.parametrize(
    "answer",
    [None, "cat", [0.1, 0.2, 0.5, 0.6], [1, 2], [0, 0, 1920, 1080], [100, 0, 0, 100], '{"bbox_2d": [0, 0, 0, 0]}'],
)
def test_a_reference_without_boxes_or_in_pixels_is_an_error(answer: object) -> None:
    told = f"box_iou cannot read the answer {answer!r} of prompt 'b-1'; give [left, top, right, bottom], or a list of these"
    told += ", from 0 to 1000 (thousandths of the picture, not pixels)"
    assert score(answer, LEFT) == Score(reward=0.0, error=told)


@pytest.mark.parametrize("threshold", [0, -1, 1.1, float("nan")])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold of box_iou must be > 0 and <= 1, got"):
        box_iou(threshold=threshold)


def test_nothing_hostile_is_rewarded() -> None:
    more = [
        "```\n" + " " * 90_000,
        "{}" * 40_000,
        "[1]and" * 15_000,
        "(1,2)," * 15_000,
        "[" + "[0,0,100,100]," * 6_000 + "[]]",
    ]
    rewarded = {text[:60]: score([617, 613, 641, 643], text, 0.5) for text in [*HOSTILE, *more]}
    assert {text: reward for text, reward in rewarded.items() if reward != 0.0} == {}


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score(LEFT, text) == 0.0


boxes = st.tuples(*[st.integers(0, 500)] * 2, *[st.integers(501, 1000)] * 2)


@given(st.lists(boxes, min_size=1, max_size=5), st.lists(boxes, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_it_is_symmetric_and_one_for_the_same_boxes(
    found: list[tuple[int, ...]], wanted: list[tuple[int, ...]]
) -> None:
    reward = score(wanted, found)
    assert isinstance(reward, float) and 0.0 <= reward <= 1.0 + 1e-12
    assert score(found, wanted) == pytest.approx(reward)
    assert score(wanted, wanted[::-1]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("The vase is not at [100, 200, 300, 600].", 0.0),
        ("[100, 200, 300, 600] is wrong.", 0.0),
        ("不是[100, 200, 300, 600]", 0.0),
        ("[100, 200, 300, 600], not [0, 0, 50, 50]", 1.0),
        ("[0, 0, 50, 50] is not correct. It is at [100, 200, 300, 600].", 1.0),
    ],
)
def test_a_box_that_is_denied_is_no_answer(text: str, reward: float) -> None:
    prompt = Prompt(id="b-1", messages=[], answer=[100, 200, 300, 600])
    assert box_iou(prompt, Completion(text=text)) == reward
