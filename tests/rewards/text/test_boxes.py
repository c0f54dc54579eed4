"""Where a response gives its boxes and points, and which of them can be."""

import pytest

from rewards.text.boxes import BOX, LONGEST, POINT, Shape, shapes_of_reference, shapes_of_text, share_found
from rewards.text.labels import named_by
from rewards.text.places import says_none

ONE = Shape(place=(10, 20, 30, 40))
CAT = Shape(place=(10, 20, 30, 40), label="cat")
DOG = Shape(place=(50, 60, 70, 80), label="dog")
TWO, FEW = Shape(place=(50, 60, 70, 80)), Shape(place=(1, 2, 3, 4))
NOWHERE = Shape(place=None)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("[10, 20, 30, 40]", [ONE]),
        ("[[10, 20, 30, 40]]", [ONE]),
        ("[10.0, 20.0, 30.0, 40.0]", [ONE]),
        ('{"bbox_2d": [10, 20, 30, 40]}', [ONE]),
        ('{"bbox": [10, 20, 30, 40]}', [ONE]),
        ('{"bbox_2d": [10, 20, 30, 40], "label": " CAT"}', [CAT]),
        ('{"bbox_2d": [10, 20, 30, 40], "label": null}', [ONE]),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}, {"bbox_2d": [50, 60, 70, 80], "label": "dog"}]', [CAT, DOG]),
        ('{"bbox_2d": [10, 20, 30, 40], "label": "cat"}\n{"bbox_2d": [50, 60, 70, 80], "label": "dog"}', [CAT, DOG]),
        ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]\n```', [CAT]),
        ('```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "cat"}\n]\n```\nThat is it [sic].', [CAT]),
        ("```json\n[1, 2, 3, 4]\n```\nNo:\n```json\n[10, 20, 30, 40]\n```", [ONE]),
        ("It is not [1, 2, 3, 4] but [10, 20, 30, 40].", [ONE]),
        ("[1, 2, 3, 4] or [10, 20, 30, 40]", [ONE]),
        ("[10, 20, 30, 40] and [10, 20, 30, 40]", [ONE, ONE]),
        (r"\boxed{[10, 20, 30, 40]}", [ONE]),
        (r"[1, 2, 3, 4], so \boxed{[10, 20, 30, 40]}", [ONE]),
        ("<answer>[10, 20, 30, 40]</answer>", [ONE]),
        ("<answer>\n```json\n[10, 20, 30, 40]\n```\n</answer>", [ONE]),
        ("<think>[1, 2, 3, 4]</think>[10, 20, 30, 40]", [ONE]),
        ("<box>(10,20),(30,40)</box>", [ONE]),
        ("the cat (10, 20), (30, 40)", [ONE]),
        ("(10,20),(30,40),(50,60)", [ONE, NOWHERE]),
        ('{"label": "sign [left", "bbox_2d": [10, 20, 30, 40]}', [Shape(place=(10, 20, 30, 40), label="sign [left")]),
        ("[10, 20, 30, 40,]", [ONE]),
        ("(10, 20, 30, 40)", [ONE]),
        (r"\boxed{10, 20, 30, 40}", [ONE]),
        (r"\boxed{\{'bbox': [10, 20, 30, 40]\}}", [ONE]),
        ("10, 20, 30, 40", [ONE]),
        ("The box is 10, 20, 30, 40.", [ONE]),
        ("1. 10, 20, 30, 40\n2. 50, 60, 70, 80", [ONE, TWO]),
        ('["10", "20", "30", "40"]', [ONE]),
        ("{'bbox_2d': [10, 20, 30, 40], 'label': 'cat',}", [CAT]),
        ("{bbox_2d: (10, 20, 30, 40), label: 'cat'}", [CAT]),
        (
            '{"bbox_2d": [10, 20, 30, 40], "label": "the "big" one"}',
            [Shape(place=(10, 20, 30, 40), label='the "big" one')],
        ),
        (
            '{"bbox_2d": [10, 20, 30, 40], "label": \'a man\'s hat\'}',
            [Shape(place=(10, 20, 30, 40), label="a man's hat")],
        ),
        ('{"bbox": [[10, 20], [30, 40]]}', [ONE]),
        ("[[10, 20], [30, 40]]", [ONE]),
        ("from (10, 20) to (30, 40)", [ONE]),
        ("top-left: (10, 20), bottom-right: (30, 40)", [ONE]),
        ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>", [ONE]),
        ("<box>10, 20, 30, 40</box>\n<box>50 60 70 80</box>", [ONE, TWO]),
        ('{"Position": [10, 20, 30, 40], "Confidence": 0.9}', [ONE]),
        ('{"x1": 10, "y1": 20, "x2": 30, "y2": 40}', [ONE]),
        ('{"results": [{"bbox": [10, 20, 30, 40]}]}', [ONE]),
        ('{"cat": [10, 20, 30, 40], "dog": [50, 60, 70, 80]}', [ONE, TWO]),
        ('[["cat", [10, 20, 30, 40]]]', [CAT]),
        ('["cat", (10, 20, 30, 40)]', [CAT]),
        ("I see a cat: [10, 20, 30, 40]\nI see a dog: [50, 60, 70, 80]", [ONE, TWO]),
        ("1. **Cat**\n   - box: [10, 20, 30, 40]\n2. **Dog**\n   - box: [50, 60, 70, 80]", [ONE, TWO]),
        ("Cat:\n```json\n[10, 20, 30, 40]\n```\nDog:\n```json\n[50, 60, 70, 80]\n```\nBoth are [sic].", [ONE, TWO]),
        ("First [1, 2, 3, 4]. Looking closer, so the box is [10, 20, 30, 40].", [ONE]),
        # A second box in another key is a second answer.
        ('{"bbox_2d": [10, 20, 30, 40], "alternatives": [[50, 60, 70, 80], [1, 2, 3, 4]]}', [ONE, TWO, FEW]),
        ('{"bbox_2d": [10, 20, 30, 40], "or": {"bbox_2d": [50, 60, 70, 80]}}', [ONE, TWO]),
        ('{"bbox_2d": [10, 20, 30, 40], "or": "[50, 60, 70, 80]"}', [ONE, TWO]),
        ('{"bbox_2d": [10, 20, 30, 40], "center": [20, 30], "image_size": [640, 480]}', [ONE]),
        # Of these, each counts, and none can be.
        ("[30, 20, 10, 40]", [NOWHERE]),
        ("[10, 20, 10, 40]", [NOWHERE]),
        ("[10, 20, 30, 1001]", [NOWHERE]),
        ("[-1, 20, 30, 40]", [NOWHERE]),
        ("[10, 20, 30]", [NOWHERE]),
        ("[10, 20, 30, 40, 50]", [NOWHERE]),
        ("[NaN, 20, 30, 40]", [NOWHERE]),
        ("[10, 20, 30, 1e999]", [NOWHERE]),
        ("[10, 20, 30, Infinity]", [NOWHERE]),
        ("[false, 20, true, 40]", [NOWHERE]),
        ("[10, 20, 30, null]", [NOWHERE]),
        ("[[10, 20, 30, 40], 5]", [ONE, NOWHERE]),
        ("[[[10, 20, 30, 40]]]", [NOWHERE]),
        ("{}", [NOWHERE]),
        ('{"point_2d": [10, 20]}', [NOWHERE]),
        ('{"bbox_2d": [10, 20, 30, 40], "bbox": [10, 20, 30, 40]}', [NOWHERE]),
        # No answer at all.
        ("It could be [10, 20, 30, 40]. Wait, let me look at", []),
        ("", []),
        ("[]", []),
        ("null", []),
        ("the upper left corner", []),
        ('"[10, 20, 30, 40]"', []),
        ("<think>[10, 20, 30, 40]", []),
        ("<think>[10, 20, 30, 40]</think>", []),
        (r"\boxed{} [10, 20, 30, 40]", []),
        (r"\boxed{[10, 20, 30, 40]", []),
        ("[10, 20, 30, 40", []),
        ("[[10, 20, 30, 40], [10, 20", []),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "(10,20),(30,40)', []),
        ('```json\n[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1', []),
        ("10, 20, 30, 40], [10, 20, 30, 40]", []),
        ('{"bbox_2d": [10, 20, 30, 40], "bbox_2d": [10, 20, 30, 40]}', []),
        ("[10, 20, 30, " + "4" * 5000 + "]", []),
        ("[" * 50_000 + "]" * 50_000, []),
        (" " * LONGEST + "[10, 20, 30, 40]", []),
    ],
)
def test_boxes_are_read_where_the_answer_stands(text: str, shapes: list[Shape]) -> None:
    assert shapes_of_text(text, BOX) == shapes


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("[10, 20]", [(10, 20)]),
        ("[[10, 20], [30, 40]]", [(10, 20), (30, 40)]),
        ('{"point_2d": [10, 20], "label": "cat"}', [(10, 20)]),
        ('```json\n[{"point_2d": [10, 20]}, {"point_2d": [30, 40]}]\n```', [(10, 20), (30, 40)]),
        ("(10.5, 20)", [(10.5, 20)]),
        ("at (10, 20)", [(10, 20)]),
        (r"\boxed{(10, 20)}", [(10, 20)]),
        ("[10]", [None]),
        ("[10, NaN]", [None]),
        ("[10, 20, 30, 40]", [(20, 30)]),
        ('{"bbox_2d": [10, 20, 30, 40]}', [(20, 30)]),
        ("<|box_start|>(10,20),(30,40)<|box_end|>", [(20, 30)]),
        ("<|box_start|>(10,20)<|box_end|>", [(10, 20)]),
        ('{"bbox_2d": [10, 20, 30, 40], "point_2d": [11, 21]}', [(11, 21)]),
        ('{"action": "left_click", "coordinate": [10, 20]}', [(10, 20)]),
        ('<tool_call>\n{"name": "mouse", "arguments": {"coordinate": [10, 20]}}\n</tool_call>', [(10, 20)]),
        ('{"name": "mouse", "arguments": "{\\"coordinate\\": [10, 20]}"}', [(10, 20)]),
        ('{"coordinate": [10, 20], "others": [[30, 40]]}', [(10, 20), (30, 40)]),
        ("click(x=10, y=20)", [(10, 20)]),
        ("pyautogui.click(10, 20)", [(10, 20)]),
        ("click(start_box='(10,20)')", [(10, 20)]),
        ('<points x1="10" y1="20" x2="30" y2="40">cats</points>', [(10, 20), (30, 40)]),
        ('{"x": 10, "y": 20}', [(10, 20)]),
        ("10, 20", [(10, 20)]),
        ("(10, 2000)", [None]),
        ("(-10, 20)", [None]),
        ("[[10, 20], [30", []),
        ("(10, 20", []),
    ],
)
def test_points_are_read_likewise(text: str, places: list[tuple[float, ...] | None]) -> None:
    assert [shape.place for shape in shapes_of_text(text, POINT)] == places


@pytest.mark.parametrize(
    "answer",
    [
        [10, 20, 30, 40],
        (10, 20, 30, 40),
        [[10, 20, 30, 40]],
        {"bbox_2d": [10, 20, 30, 40]},
        [{"bbox_2d": [10, 20, 30, 40], "label": None, "point_2d": None}],
        "[10, 20, 30, 40]",
        '[{"bbox_2d": [10, 20, 30, 40]}]',
    ],
)
def test_a_reference_may_have_any_of_these_forms(answer: object) -> None:
    assert shapes_of_reference(answer, BOX) == [ONE]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        "cat",
        5,
        {},
        [0.1, 0.2, 0.5, 0.6],
        [[10, 20, 30, 40], [0.1, 0.2, 0.5, 0.6]],
        [10, 20],
        [0, 0, 1920, 1080],
        [30, 20, 10, 40],
        [[10, 20, 30, 40], [1]],
        "[" * 9999,
    ],
)
def test_a_reference_that_is_none_or_in_pixels_says_what_is_wanted(answer: object) -> None:
    told = r"give \[left, top, right, bottom\], or a list of these, from 0 to 1000 \(thousandths of the picture, not pixels\)"
    with pytest.raises(ValueError, match=told):
        shapes_of_reference(answer, BOX)


def test_the_best_pairs_are_not_the_nearest_first() -> None:
    worths = [[0.9, 0.8], [0.8, 0.0]]  # greedy: 0.9 + 0.0
    import numpy as np

    found = wanted = [ONE, ONE]
    assert share_found(found, wanted, lambda one, other: np.array(worths)) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("label", "same", "other"),
    [
        ("cat", "a cat", "dog"),
        ("cat", "The black cats.", "cat food"),
        ("the cat sleeping on the blue sofa", "cat on the left", "sofa"),
        ("black cat", "cat", "white cat"),
        ("traffic light", "traffic_light", "traffic sign"),
        ("猫", "黑色的猫", "狗"),
    ],
)
def test_a_label_may_say_more_or_less_than_the_noun(label: str, same: str, other: str) -> None:
    assert named_by(same, {label, "tree"}) == label
    assert named_by(other, {label, "tree"}) is None


def test_a_noun_that_means_two_of_the_labels_names_neither() -> None:
    names = {"left cat", "right cat", "bear", "teddy bear"}
    assert [named_by(name, names) for name in ("cat", "the left cat", "bear", "brown teddy bear")] == [
        None,
        "left cat",
        "bear",
        "teddy bear",
    ]


@pytest.mark.parametrize(
    ("text", "is_none"),
    [
        ("[]", True),
        ("```json\n[]\n```", True),
        ('{"objects": []}', True),
        ('[{"bbox_2d": null, "label": "cat"}]', True),
        ("None", True),
        ("There is no cat in the picture.", True),
        (r"\boxed{\text{none}}", True),
        ("The cat does not appear in this picture.", True),
        ("图中没有猫。", True),
        ("", False),
        ("I do not know.", False),
        ("There is no doubt that it is here.", False),
        ("It is not clear.", False),
        ("a cat", False),
        ('[{"bbox_2d": [1, 2, 3, 4]}, null]', False),
    ],
)
def test_no_object_is_said_by_an_empty_list_or_in_words(text: str, is_none: bool) -> None:
    assert says_none(text) is is_none
