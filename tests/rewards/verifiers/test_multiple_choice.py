"""The letter, the letter with its text, or the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score, multiple_choice
from rollout import Completion, Prompt

OPTIONS = ["a dog", "a cat", "A horse.", "B"]


def score(answer: object, text: str, options: object = OPTIONS) -> float | Score:
    columns = {} if options is None else {"options": options}
    prompt = Prompt(id="vqa-3", messages=[], answer=answer, columns=columns)
    return multiple_choice(prompt, Completion(text=text))


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "**B**",
        r"\boxed{B}",
        r"\boxed{\text{B}}",
        "The answer is B.",
        "Answer: (B)",
        "B. a cat",
        "(B) A  cat.",
        "B a cat",
        "a cat",
        "A cat.",
        "I see whiskers.\nB",
        "A dog? No: the answer is a cat",
        "Answer: A\nWait. Answer: B",
        r"The answer is A, no, \boxed{B}",
    ],
)
def test_the_right_option_in_any_form_is_right(text: str) -> None:
    assert score("B", text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "E",
        "A. a cat",
        "B. a dog",
        "A or B",
        "B or A",
        "A, B",
        "(A) (B)",
        "a",
        "cat",
        "a cat or a dog",
        "AB",
        "1",
    ],
)
def test_another_option_or_several_are_wrong(text: str) -> None:
    assert score("B", text) == 0.0


def test_the_reference_may_be_the_text_of_an_option() -> None:
    assert score("A Cat", "B") == 1.0
    assert score("a horse", "C") == 1.0


@pytest.mark.parametrize("options", [np.array(["(A) a dog", "(B) a cat"]), {"A": "a dog", "b": "a cat"}])
def test_options_may_be_lettered_or_mapped(options: object) -> None:
    assert score("B", "a cat", options) == 1.0
    assert score("B", "a dog", options) == 0.0


@pytest.mark.parametrize(
    ("text", "reward"), [("B) a cat", 1), ("B: A cat", 1), ("B. or A", 0), ("B a cat", 0), ("B.A", 0)]
)
def test_without_options_a_mark_must_set_the_letter_off(text: str, reward: float) -> None:
    assert score("B", text, options=None) == reward


def test_a_text_that_two_options_share_picks_neither() -> None:
    assert score("A", "a cat", ["a cat", "a cat", "a dog"]) == 0.0


def test_a_reference_that_names_no_option_is_an_error_and_not_a_zero() -> None:
    told = "multiple_choice cannot read the answer 'E' of prompt 'vqa-3'; give one of ['A', 'B', 'C', 'D']"
    assert score("E", "E") == Score(reward=0.0, error=f"{told} or the text of an option")
    told = "multiple_choice cannot read the answer 'a cat' of prompt 'vqa-3'; give a letter, or add a column 'options'"
    assert score("a cat", "B", options=None) == Score(reward=0.0, error=told)


def test_formulas_may_be_options() -> None:
    assert score("B", "$x^2$", ["$x$", "(B) $x^2$"]) == 1.0
    assert score("$2*3$", "2*3", ["2*3", "23"]) == 1.0


@given(st.text(max_size=50).filter(lambda text: "b" not in text.casefold() and "cat" not in text.casefold()))
@settings(max_examples=200, deadline=None)
def test_text_without_the_letter_and_the_option_is_never_right(text: str) -> None:
    assert score("B", text) == 0.0
