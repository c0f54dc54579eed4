"""Boxes and points, in every way that Qwen3-VL writes them, and in ways that earn nothing."""

import pytest

from rewards import Score
from rewards.box_iou import box_iou
from rewards.point_in_box import point_in_box
from rollout import Completion, Prompt

BOX = [100, 200, 300, 400]
TWO = [{"bbox_2d": [100, 200, 300, 400], "label": "a dog"}, {"bbox_2d": [500, 500, 600, 700], "label": "a cat"}]


def boxed(answer: object, text: str, **options: float) -> float | Score:
    return box_iou(**options)(Prompt(id="p-7", messages=[], answer=answer), Completion(text=text))


def pointed(answer: object, text: str) -> float | Score:
    return point_in_box(Prompt(id="p-7", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    "text",
    [
        "[100, 200, 300, 400]",
        "[[100, 200, 300, 400]]",
        '[{"bbox_2d": [100, 200, 300, 400], "label": "a dog"}]',
        '{"bbox_2d": [100, 200, 300, 400]}',
        '{"bbox": [100.0, 200, 300, 400]}',
        '```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "dog"}]\n```',
        'Here it is:\n```json\n[\n\t{"bbox_2d": [100, 200, 300, 400]}\n]\n```\nDone.',
        "The dog is at [100, 200, 300, 400].",
        "First [1, 2, 3, 4], no: [100, 200, 300, 400]",
        "<think>[1, 2, 3, 4]</think>[100, 200, 300, 400]",
        r"\boxed{[100, 200, 300, 400]}",
        "<answer>[100, 200, 300, 400]</answer>",
        "<box>(100,200),(300,400)</box>",
        "(100, 200), (300, 400)",
    ],
)
def test_a_box_is_read_in_every_form(text: str) -> None:
    assert boxed(BOX, text) == 1.0


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("[100, 200, 300, 300]", 0.5),  # half of it
        ("[200, 200, 400, 400]", 1 / 3),  # 20,000 of 60,000
        ("[0, 0, 1000, 1000]", 0.04),  # 40,000 of 1,000,000
        ("[300, 400, 500, 600]", 0.0),  # a corner in common
        ("[[100, 200, 300, 400], [100, 200, 300, 400]]", 0.5),  # twice is one too many
        ("[[100, 200, 300, 400], [1, 2]]", 0.5),
        ("[300, 400, 100, 200]", 0.0),
        ("[100, 200, 300]", 0.0),
        ("[100, 200, 300, 400, 500]", 0.0),
        ("[-100, 200, 300, 400]", 0.0),
        ("[100, 200, 300, 1001]", 0.0),
        ("[100, 200, 300, NaN]", 0.0),
        ("[100, 200, 300, 1e999]", 0.0),
        ('["100", "200", "300", "400"]', 0.0),
        ("[true, 200, 300, 400]", 0.0),
        ("[100, 200, 300, 4" + "0" * 5000 + "]", 0.0),
        ("[100, 200, 300, 400", 0.0),  # cut off
        ('[{"bbox_2d": [100, 200, 300, 400]}, {"bbox_2d": [1', 0.0),
        ("100 200 300 400", 0.0),
        ("[]", 0.0),
        ("{}", 0.0),
        ("null", 0.0),
        ("", 0.0),
        ("the dog", 0.0),
        ("<think>[100, 200, 300, 400]", 0.0),
        ("[100, 200, 300, 400] or [1, 2, 3, 4]", 0.0),
    ],
)
def test_what_covers_less_earns_less_and_what_is_no_box_nothing(text: str, reward: float) -> None:
    assert boxed(BOX, text) == pytest.approx(reward)


def test_boxes_are_paired_for_the_best_and_by_their_labels() -> None:
    both = '[{"bbox_2d": [500, 500, 600, 700], "label": "A Cat"}, {"bbox_2d": [100, 200, 300, 400], "label": "a dog"}]'
    assert boxed(TWO, both) == 1.0
    assert boxed(TWO, both.replace("A Cat", "x").replace("a dog", "a cat").replace('"x"', '"a dog"')) == 0.0
    assert boxed(TWO, "[[500, 500, 600, 700], [100, 200, 300, 400]]") == 1.0  # no labels, none that are wrong
    assert boxed(TWO, "[[500, 500, 600, 700]]") == 0.5
    # Each is used once: 1 and 0.25 are more than 0.5 and 0.5.
    assert boxed([[0, 0, 10, 10], [0, 0, 10, 20]], "[[0, 0, 10, 20], [0, 0, 10, 40]]") == pytest.approx((1 + 0.25) / 2)


def test_with_a_threshold_a_pair_counts_or_does_not() -> None:
    assert [boxed(BOX, "[100, 200, 300, 300]", threshold=t) for t in (0.5, 0.51)] == [1.0, 0.0]
    with pytest.raises(ValueError, match="threshold of box_iou must be > 0 and <= 1, got 2"):
        box_iou(threshold=2)


def test_a_flood_of_boxes_earns_nothing() -> None:
    assert boxed(BOX, str([BOX] * 111)) == 0.0
    assert 0 < boxed(BOX, str([BOX] * 110)) < 0.01


@pytest.mark.parametrize("answer", [BOX, [BOX], str(BOX), '{"bbox_2d": [100, 200, 300, 400]}', tuple(BOX)])
def test_the_reference_may_have_every_form(answer: object) -> None:
    assert boxed(answer, "[100, 200, 300, 400]") == 1.0
    assert pointed(answer, "[200, 300]") == 1.0


@pytest.mark.parametrize("answer", [None, 5, "a dog", [], [1, 2], [0, 0, 1920, 1080], [300, 400, 100, 200], "[1,"])
def test_a_reference_that_is_no_box_is_an_error(answer: object) -> None:
    for score in (boxed(answer, str(BOX)), pointed(answer, "[1, 2]")):
        assert isinstance(score, Score) and f"cannot read the answer {answer!r} of prompt 'p-7'" in str(score.error)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("[200, 300]", 1),
        ('{"point_2d": [100, 400], "label": "a dog"}', 1),  # on the edge
        ('```json\n[{"point_2d": [200, 300]}]\n```', 1),
        ("(200, 300)", 1),
        ("It is at (200, 300).", 1),
        ("[99, 300]", 0),
        ("[200, 401]", 0),
        ("[[200, 300], [201, 301]]", 0.5),  # one point for each box
        ("[[200, 300], [1, 1]]", 0.5),
        (str([[x, y] for x in range(0, 1000, 100) for y in range(0, 1000, 100)]), 0.01),  # everywhere
        ("[200]", 0),
        ("[200, NaN]", 0),
        ("200, 300", 0),
        ("", 0),
        ("[100, 200, 300, 400]", 0),  # a box is no point
    ],
)
def test_a_point_is_in_the_box_or_is_not(text: str, reward: float) -> None:
    assert pointed(BOX, text) == pytest.approx(reward)


def test_every_box_needs_a_point_of_its_own() -> None:
    assert pointed(TWO, "[[550, 600], [200, 300]]") == 1.0
    assert pointed(TWO, "[[550, 600], [551, 601]]") == 0.5
    assert (
        pointed(TWO, '[{"point_2d": [550, 600], "label": "a dog"}, {"point_2d": [200, 300], "label": "a cat"}]') == 0.0
    )
