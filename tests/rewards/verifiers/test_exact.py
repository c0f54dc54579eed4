"""The whole text is the answer, and nothing else is."""

import pytest

from rewards import Score, exact
from rollout import Completion, Prompt


def score(answer: object, text: str) -> float | Score:
    return exact(Prompt(id="digits-12", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize("text", ["17", " 17\n", "\t17 "])
def test_white_space_around_the_answer_does_not_count(text: str) -> None:
    assert score("17", text) == 1.0


def test_case_and_inner_white_space_do_not_count() -> None:
    assert score("dark blue", "Dark \n BLUE") == 1.0


@pytest.mark.parametrize("text", ["", "17.", "1 7", "the answer is 17", "17 17", "117"])
def test_anything_else_than_the_answer_is_wrong(text: str) -> None:
    assert score("17", text) == 0.0


def test_a_number_is_compared_as_it_is_written() -> None:
    assert score(17, "17") == 1.0
    assert score(17.0, "17") == 0.0


def test_a_prompt_without_an_answer_is_an_error_and_not_a_zero() -> None:
    assert score(None, "17") == Score(reward=0.0, error="exact needs an answer, and prompt 'digits-12' has none")
