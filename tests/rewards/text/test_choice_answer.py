"""Picks as `yes_no` reads them."""

import pytest

from rewards import Score, yes_no
from rollout import Completion, Prompt


def score(answer: object, text: str) -> float | Score:
    return yes_no(Prompt(id="vqa-3", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        ("yes", "Yes", 1),
        ("YES", "yes.", 1),
        (True, "**Yes**, two of them.", 1),
        ("true", "It is true.", 1),
        ("yes", "Yes, there are no clouds above it.", 1),
        ("yes", "The answer is yes, because it has a roof.", 1),
        ("yes", "Yes it has", 1),
        ("yes", "Yes\n\nThe roof is red.", 1),
        ("yes", "是的，有两个。", 1),
        ("是", "答案：是", 1),
        ("yes", "对", 1),
        ("no", "No", 1),
        ("no", "Not at all.", 1),
        ("no", "Certainly not, as the door is shut.", 1),
        ("no", "There is no roof, so no.", 1),
        ("yes", '{"answer": "yes"}', 1),
        ("yes", "Certainly not.", 0),
        (False, "False", 1),
        ("no", "No, it isn't a house.", 1),
        ("no", "The statement is incorrect.", 1),
        ("否", "没有。", 1),
        ("no", "不是，没有房子。", 1),
        ("yes", "No", 0),
        ("no", "Yes", 0),
        ("yes", "yes and no", 0),
        ("yes", "Yes or no", 0),
        ("yes", "yes, no", 0),
        ("yes", "Yes, but also no", 0),
        ("yes", "Yes. No.", 0),
        ("yes", "maybe yes", 0),
        ("yes", "Yes, or maybe not", 0),
        ("yes", "not yes", 0),
        ("yes", "Yes?", 0),
        ("yes", "Yes, wait, no", 0),
        ("yes", "不是", 0),
        ("no", "不是没有", 0),
        ("no", "I know", 0),
        ("yes", "yesterday", 0),
        ("yes", "", 0),
    ],
)
def test_yes_and_no_are_told_apart(answer: object, text: str, reward: float) -> None:
    assert score(answer, text) == reward


@pytest.mark.parametrize("answer", [None, "maybe", "", 1, "yes and no"])
def test_a_reference_that_is_neither_yes_nor_no_is_an_error(answer: object) -> None:
    told = f"yes_no cannot read the answer {answer!r} of prompt 'vqa-3'; give yes or no, true or false, 是 or 否"
    assert score(answer, "yes") == Score(reward=0.0, error=told)
