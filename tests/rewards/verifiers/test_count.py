"""One whole number, and no other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score
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
        (1204, "1 204"),
        (1204, "12,04"),
        (5, "NaN"),
        (5, "5" * 5000),
    ],
)
def test_another_number_or_several_are_wrong(answer: object, text: str) -> None:
    assert score(answer, text) == 0.0


@pytest.mark.parametrize(
    ("text", "reward"), [("5", 1), ("4", 2 / 3), ("6", 2 / 3), ("7", 1 / 3), ("8", 0), ("2", 0), ("-4", 0)]
)
def test_within_the_tolerance_it_loses_a_share_for_each(text: str, reward: float) -> None:
    assert score(5, text, tolerance=2) == pytest.approx(reward)


@pytest.mark.parametrize("answer", [None, "", "cats", -5, 5.5, "3 or 4", True, float("nan"), [5, 6]])
def test_a_reference_that_is_no_count_is_an_error(answer: object) -> None:
    told = f"count cannot read the answer {answer!r} of prompt 'c-1'; give a whole number >= 0"
    assert score(answer, "5") == Score(reward=0.0, error=told)


@pytest.mark.parametrize("tolerance", [-1, float("nan")])
def test_a_tolerance_is_not_negative(tolerance: int) -> None:
    with pytest.raises(ValueError, match="tolerance of count must be >= 0, got"):
        count(tolerance=tolerance)


def test_nothing_hostile_is_rewarded() -> None:
    rewarded = {
        text[:60]: score(7641, text) for text in [*HOSTILE, "twenty " * 200, "not " * 300 + "7641", "7641," * 200]
    }
    assert {text: reward for text, reward in rewarded.items() if reward != 0.0} == {}


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score(7641, text) == 0.0
