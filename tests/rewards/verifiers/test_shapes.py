"""Where a response gives its boxes and points, and which of them can be."""

import pytest

from rewards.verifiers.boxes import BOX, LONGEST, POINT, Shape, shapes_of_reference, shapes_of_text, share_found

ONE = Shape(place=(10, 20, 30, 40))
CAT = Shape(place=(10, 20, 30, 40), label="cat")
DOG = Shape(place=(50, 60, 70, 80), label="dog")
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
        ('["10", "20", "30", "40"]', [NOWHERE]),
        ("[10, 20, 30, null]", [NOWHERE]),
        ("[[10, 20, 30, 40], 5]", [ONE, NOWHERE]),
        ("[[[10, 20, 30, 40]]]", [NOWHERE]),
        ("{}", [NOWHERE]),
        ('{"point_2d": [10, 20]}', [NOWHERE]),
        ('{"bbox_2d": [10, 20, 30, 40], "bbox": [10, 20, 30, 40]}', [NOWHERE]),
        # No answer at all.
        ("", []),
        ("[]", []),
        ("null", []),
        ("the upper left corner", []),
        ("10, 20, 30, 40", []),
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
        ("[10, 20, 30, 40,]", []),
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
        ("[10, 20, 30, 40]", [None]),
        ('{"bbox_2d": [10, 20, 30, 40]}', [None]),
        ("(10, 2000)", [None]),
        ("(-10, 20)", [None]),
        ("[[10, 20], [30", []),
        ("(10, 20", []),
        ("10, 20", []),
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
        [],
        "[]",
        {},
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
