"""One whole number, and no other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.types import UNREAD
from rewards.verifiers.count import count
from rollout import Completion, Prompt
from tests.rewards.hostile import HOSTILE


def score(answer: object, text: str, tolerance: int = 0) -> float | Score:
    return count(tolerance=tolerance)(Prompt(id="c-1", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (5, "5"),
        (5, "5."),
        (5, "05"),
        (5, "5.0"),
        ("5", r"\boxed{5}"),
        (5, r"\boxed{5\text{ cats}}"),
        (5, "<answer>5</answer>"),
        (5, "**5**"),
        (5, "$5$"),
        (5, "- 5"),
        (5, "There are 5 cats."),
        (5, "There are 5 cats. They sleep."),
        (5, "There are 5!"),
        (5, "five"),
        (5, "There are Five cats"),
        (5, "5 (five)"),
        (5, "I see 3 dogs and 2 cats. So there are 5 animals."),
        (5, "Maybe 4.\nAnswer: 5"),
        (5, "I see 3 here and 2 there.\nSo 5"),
        (5, "<think>4, or 6?</think>5"),
        (5, "In the 2nd picture there are 5 of them"),
        (5, "５"),
        (17, "١٧"),
        (17, "१७"),
        (1204, "1,204"),
        (1204, "1\u202f204"),
        (1204, "1 204"),
        ("1,204", "1204"),
        (1234567, "1,234,567"),
        (0, "zero"),
        (0, "0"),
        (11, "eleven"),
        (19, "Nineteen of them."),
        (20, "twenty"),
        (21, "twenty-one"),
        (42, "forty two"),
        (99, "ninety-nine"),
        (70, "seventy"),
        (3, "图中一共有3只猫"),
        (3, "三"),
        (2, "两只"),
        (10, "十"),
        (15, "十五"),
        (20, "二十"),
        (99, "一共有九十九个。"),
        (3, "第一张图有三只猫"),
        (5.0, "5"),
        ("five", "5"),
    ],
)
def test_the_number_in_any_form_is_right(answer: object, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (5, ""),
        (5, "4"),
        (5, "55"),
        (5, "15"),
        (5, "-5"),
        (5, "−5"),
        (5, "5.5"),
        (5, "5,5"),
        (5, "5%"),
        (5, "5 percent"),
        (5, "5k"),
        (5, "A5"),
        (5, "5th"),
        (5, "the 5th cat"),
        (5, "5+"),
        (5, "5 or more"),
        (5, "4 or 5"),
        (5, "5 or 4"),
        (5, "between 3 and 5"),
        (5, "between 4 and 6"),
        (5, "3-5"),
        (5, "3–5"),
        (5, "3 of the 5"),
        (3, "3 of the 5"),
        (5, "2 + 3"),
        (5, "2 + 3 = 5"),
        (5, "5 + 5"),
        (5, "5 × 5"),
        (5, "5-5"),
        (5, "5/5"),
        (5, "5^5"),
        (5, "5²"),
        (5, "5:05"),
        (5, "5e3"),
        (5, r"\frac{5}{5}"),
        (5, r"\sqrt{5}"),
        (5, r"\boxed{4} 5"),
        (5, r"\boxed{4}\boxed{5}"),
        (5, r"$x=\boxed{4}$, $y=\boxed{5}$"),
        (5, r"\boxed{5"),
        (5, "1 2 3 4 5"),
        (5, "more than 5"),
        (5, "at least 5 cats"),
        (5, "There are not 5 cats"),
        (5, "There aren't 5"),
        (5, "> 5"),
        (5, "±5"),
        (5, "four or five"),
        (5, "five hundred"),
        (5, "five dozen"),
        (60, "sixty dozen"),
        (1, "one half"),
        (5, "fifteen"),
        (5, "fiveteen"),
        (5, "fifty-five"),
        (4, "forty"),
        (20, "twenty-one"),
        (5, "cats"),
        (5, "<think>5</think>"),
        (5, "<think>5"),
        (5, "5\nNo, 6."),
        (1, "一共"),
        (3, "二三"),
        (3, "三百"),
        (3, "第三"),
        (5, "五或六"),
        (1204, "1,2,0,4"),
        (1204, "1 20 4"),
        (1204, "12,04"),
        (5, "NaN"),
        (5, "5" * 5000),
    ],
)
def test_another_number_or_several_are_wrong(answer: object, text: str) -> None:
    assert score(answer, text) == 0.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (0, "There are no birds."),
        (0, "I see no birds in it."),
        (0, "None of them."),
        (0, "No trees are visible."),
        (0, "There aren't any birds"),
        (0, "not a single bird"),
        (0, "图里没有鸟。"),
        (0, "一只都没有"),
        (1, "There is a bird on the roof."),
        (1, "a single bird"),
        (2, "a pair of gloves"),
        (2, "a couple of birds"),
        (6, "half a dozen"),
        (12, "There are a dozen birds."),
        (36, "three dozen"),
        (36, "3 dozen"),
        (3000, "3 thousand"),
        (30000, "3万"),
        (100, "a hundred"),
        (208, "two hundred and eight"),
        (3417, "three thousand four hundred seventeen"),
        (100, "一百"),
        (208, "两百零八只"),
        (9, "9 birds: 5 black and 4 white"),
        (9, "There are 9 birds (5 black, 4 white)."),
        (9, "nine birds: two black, three white and four grey"),
        (9, "5 black and 4 white, so 9 in total"),
        (9, "There are 5 black and 4 white birds, for a total of 9."),
        (9, "五只黑的，四只白的，一共九只"),
        (9, "5 black ones, 4 white ones, therefore 9"),
        (9, "9, not 8"),
        (9, "In picture 3, there are 9 birds."),
        (9, "Yes, there are 9."),
        (9, "I was not sure. There are 9."),
        (9, "There are 9 birds. I found them like this:\n\n1. Roof (2): two birds\n2. Tree (7): seven birds"),
        ("a dozen", "12"),
        ("twelve birds", "12"),
    ],
)
def test_none_words_and_totals_are_understood(answer: object, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        *(
            "about 9",
            "around 9 birds",
            "approximately 9",
            "roughly nine",
            "nearly 9",
            "almost 9",
            "some 9",
            "maybe 9",
            "~9",
            "≈ 9",
        ),
        *(
            "probably 9",
            "It could be 9",
            "It might be 9",
            "9 or so",
            "9, give or take",
            "9 birds at least",
            "nine or more",
        ),
        *(
            "below 9",
            "above 9",
            "under 9",
            "within 9",
            "exceeding 9",
            "a minimum of 9",
            "no fewer than 9",
            "9 max",
            "9 and up",
            "well over 9",
        ),
        *(
            "never 9",
            "not 9 but 10",
            "anything but 9",
            "It cannot be 9",
            "I would not say 9",
            "9 is wrong",
            "There aren't 9",
        ),
        *(
            "至少9只",
            "最多9只",
            "约9只",
            "大约有9只",
            "9只左右",
            "9只以上",
            "超过9只",
            "不到9只",
            "不是9",
            "9多只",
            "可能是9只",
        ),
        *(
            "9½",
            "9 and a half",
            "9-legged",
            "nine-legged",
            "9 birds: 5 black and 3 white",
            "9, 5, 4",
            "5, 4, 9",
            "八九只",
        ),
        *("2 nests:\n- 9 birds", "9\n- one", "There are no birds.", "several", "dozens"),
    ],
)
def test_estimates_bounds_negations_and_false_totals_are_wrong(text: str) -> None:
    assert score(9, text) == (1.0 if text == "9\n- one" else 0.0)


@pytest.mark.parametrize(
    "text", ["not a single one", "None, not one.", "no more than one", "一个都没有", "one of them", "十几个"]
)
def test_one_in_a_negation_is_not_one(text: str) -> None:
    assert score(1, text) == score(10, text) == 0.0


@pytest.mark.parametrize(
    ("text", "reward"), [("5", 1), ("4", 2 / 3), ("6", 2 / 3), ("7", 1 / 3), ("8", 0), ("2", 0), ("-4", 0)]
)
def test_within_the_tolerance_it_loses_a_share_for_each(text: str, reward: float) -> None:
    assert score(5, text, tolerance=2) == pytest.approx(reward)


@pytest.mark.parametrize(
    "answer", [None, "", "cats", -5, 5.5, "3 or 4", True, float("nan"), [5, 6], "about 7", "at least 7", "Gate 7", "7½"]
)
def test_a_reference_that_is_no_count_is_an_error(answer: object) -> None:
    told = f"count cannot read the answer {answer!r} of prompt 'c-1'; give a whole number >= 0"
    assert score(answer, "5") == Score(reward=0.0, error=told)


@pytest.mark.parametrize("tolerance", [-1, float("nan")])
def test_a_tolerance_is_not_negative(tolerance: int) -> None:
    with pytest.raises(ValueError, match="tolerance of count must be >= 0, got"):
        count(tolerance=tolerance)


@pytest.mark.parametrize("text", ["", "I cannot see the picture.", "<think>5", "many birds", "看不清"])
def test_a_response_without_a_number_is_unread(text: str) -> None:
    assert score(5, text) is UNREAD


@pytest.mark.parametrize("text", ["6", "not 5", "about 5", "There are no birds.", "5 or 6"])
def test_a_wrong_or_doubtful_number_is_read(text: str) -> None:
    assert score(5, text) == 0.0 and score(5, text) is not UNREAD


@pytest.mark.parametrize(
    "text", ["twice 9", "9 squared", "9 would be too many", "Is it 9?", "9‰", "9π", "at the very least 9", "除了9"]
)
def test_numbers_of_a_calculation_or_a_rejection_are_wrong(text: str) -> None:
    assert score(9, text) == 0.0


def test_nothing_hostile_is_rewarded() -> None:
    rewarded = {
        text[:60]: score(7641, text) for text in [*HOSTILE, "twenty " * 200, "not " * 300 + "7641", "7641," * 200]
    }
    assert {text: reward for text, reward in rewarded.items() if reward != 0.0} == {}


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score(7641, text) == 0.0
