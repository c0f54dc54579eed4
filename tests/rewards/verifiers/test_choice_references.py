"""References and options of multiple choice, in the forms of datasets, and several right options."""

from typing import Any

import numpy as np
import pytest

from rewards import Score, multiple_choice
from rollout import Completion, Prompt

OPTIONS = ["a dog", "a cat", "A horse.", "B"]


def score(answer: object, text: str, options: object = OPTIONS, verifier: Any = multiple_choice) -> float | Score:
    columns = {} if options is None else {"options": options}
    prompt = Prompt(id="vqa-3", messages=[], answer=answer, columns=columns)
    return verifier(prompt, Completion(text=text))


def test_the_reference_may_be_the_text_of_an_option() -> None:
    assert score("A Cat", "B") == 1.0
    assert score("a horse", "C") == 1.0
    assert score("(B) a cat", "B") == 1.0


def test_the_reference_may_be_the_place_of_an_option() -> None:
    assert (score(0, "A"), score(1, "B"), score(1, "A")) == (1.0, 1.0, 0.0)
    assert score(2, "B", [1, 2, 3]) == 1.0  # which is the text of an option
    assert isinstance(score(4, "A"), Score) and isinstance(score(True, "B"), Score)


@pytest.mark.parametrize(
    "options",
    [
        np.array(["(A) a dog", "(B) a cat"]),
        {"A": "a dog", "b": "a cat"},
        {"A": "a dog", "B": "a cat", "C": None},
        {"label": ["A", "B"], "text": ["a dog", "a cat"]},
        "A. a dog\nB. a cat",
        "A. a dog B. a cat",
        "(A) a dog; (B) a cat",
        "A、a dog B、a cat",
        "a dog\na cat",
        "- a dog\n- a cat",
        '["a dog", "a cat"]',
        "['a dog', 'a cat']",
        '{"A": "a dog", "B": "a cat"}',
    ],
)
def test_options_may_be_lettered_or_mapped(options: object) -> None:
    assert score("B", "a cat", options) == 1.0
    assert score("B", "a dog", options) == 0.0


@pytest.mark.parametrize("options", ["a dog, a cat", "dog", {"first": "a dog"}, [["a dog"], ["a cat"]], 2, "['a dog'"])
def test_options_that_cannot_be_read_are_an_error(options: object) -> None:
    told = "give a column 'options' that is a list of texts, or a mapping from letters to texts"
    result = score("B", "B", options)
    assert isinstance(result, Score) and told in str(result.error)


@pytest.mark.parametrize("options", [{"1": "a dog", "2": "a cat"}, {1: "a dog", 2: "a cat"}, "1. a dog 2. a cat"])
@pytest.mark.parametrize(
    ("text", "reward"), [("2", 1), ("(2)", 1), ("2. a cat", 1), ("a cat", 1), ("1", 0), ("2. a dog", 0)]
)
def test_options_may_be_numbered(options: object, text: str, reward: float) -> None:
    assert score("2", text, options) == reward


@pytest.mark.parametrize(
    ("text", "reward"), [("B) a cat", 1), ("B: A cat", 1), ("B. or A", 0), ("B a cat", 0), ("B.A", 0), ("B - a cat", 1)]
)
def test_without_options_a_mark_must_set_the_letter_off(text: str, reward: float) -> None:
    assert score("B", text, options=None) == reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("D", 1),
        ("a cat (D)", 1),
        ("(D) A, B and C have the same length", 1),
        ("D, A", 0),
        ("D. a cat or a dog", 0),
        ("D. a cat is wrong", 0),
        ("D. No.", 0),
        ("not a cat (D)", 0),
        ("P(D)", 0),
        ("D - 5", 0),
    ],
)
def test_without_options_a_letter_may_have_any_text(text: str, reward: float) -> None:
    assert score("D", text, options=None) == reward


@pytest.mark.parametrize("answer", ["C - 5", "P(A)", "I choose B", "AB", ["A", "B"], "a cat (B)", "17"])
def test_without_options_a_formula_or_a_word_is_no_reference(answer: object) -> None:
    assert isinstance(score(answer, "A", options=None), Score)


@pytest.mark.parametrize("answer", ["ACD", "A, C, D", "D, A and C", "(A)(C)(D)", ["A", "C", "D"], ["a dog", "C", "d"]])
@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("ACD", 1),
        ("acd", 1),
        ("D, C, A", 1),
        ("A C D", 1),
        ("A+C+D", 1),
        ("A、C、D", 1),
        ("(A), (C) and (D)", 1),
        ("The correct options are A, C, and D.", 1),
        (r"\boxed{\text{A, C, D}}", 1),
        (r"\boxed{A}, \boxed{C} and \boxed{D}", 1),
        ("<answer>A. a dog, C. a horse, D. a bird</answer>", 1),
        ("a bird, a dog and a horse", 1),
        ("答案：ACD", 1),
        ("AC", 0),
        ("A", 0),
        ("ABCD", 0),
        ("A, C, D, E", 0),
        ("A, C or D", 0),
        ("A, C, not D", 0),
        ("A. a dog, C. a cat, D. a bird", 0),
        ("all of them", 0),
        ("cad", 0),
        ("", 0),
    ],
)
def test_several_options_are_a_set(answer: object, text: str, reward: float) -> None:
    assert score(answer, text, ["a dog", "a cat", "a horse", "a bird"]) == reward


def test_several_options_may_be_asked_for() -> None:
    several = multiple_choice(several=True)
    assert [score("AC", text, None, several) for text in ("C, A", "A", "ABC")] == [1.0, 0.0, 0.0]
    assert [score("A", text, None, several) for text in ("A", "A, C")] == [1.0, 0.0]
    prompt = Prompt(id="vqa-3", messages=[], answer="AC", columns={"several": True})
    assert multiple_choice(prompt, Completion(text="CA")) == 1.0


def test_a_reference_that_names_no_option_is_an_error_and_not_a_zero() -> None:
    told = "multiple_choice cannot read the answer 'E' of prompt 'vqa-3'; give one of ['A', 'B', 'C', 'D']"
    assert score("E", "E") == Score(reward=0.0, error=f"{told} or the text of an option")
    told = "multiple_choice cannot read the answer 'a cat' of prompt 'vqa-3'; give a letter, or add a column 'options'"
    assert score("a cat", "B", options=None) == Score(reward=0.0, error=told)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("A\nC", 1),
        ("A\n\nC", 1),
        ("- A\n- C", 1),
        ("The right options are:\n1. A. a dog\n2. C. a horse", 1),
        ("**A**\n**C**", 1),
        ("Both A and C are correct.", 1),
        ("A and C, but not B or D", 1),
        ("AC是正确的", 1),
        ("A\nB\nC", 0),
        ("B\nC", 0),
        ("A. a dog\nB. a cat\nC. a horse\nD. a bird", 0),
    ],
)
def test_several_letters_may_stand_in_lines(text: str, reward: float) -> None:
    assert score("AC", text, ["a dog", "a cat", "a horse", "a bird"]) == reward
    assert score("C", text, ["a dog", "a cat", "a horse", "a bird"], multiple_choice(several=True)) == 0.0
