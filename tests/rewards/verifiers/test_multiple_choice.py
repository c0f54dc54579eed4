"""The letter, the letter with its text, or the text; several letters."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score, multiple_choice, yes_no
from rollout import Completion, Prompt

OPTIONS = ["a dog", "a cat", "A horse.", "B"]


def score(answer: object, text: str, options: object = OPTIONS, verifier: Any = multiple_choice) -> float | Score:
    columns = {} if options is None else {"options": options}
    prompt = Prompt(id="vqa-3", messages=[], answer=answer, columns=columns)
    return verifier(prompt, Completion(text=text))


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
        "B!",
        "{B}",
        "[B]",
        "B)",
        "“B”",
        "Ｂ",
        "（B）",
        "B。",
        "Option B",
        "choice (b)",
        "I would go with B.",
        "So it must be B.",
        "Answer: B: a cat",
        "B (a cat)",
        "B - a cat",
        "B, a cat",
        "B. cat",
        "a cat (B)",
        r"\boxed{\mathbf{B}}",
        r"\boxed{\textbf{(B) a cat}}",
        "The best choice is B.",
        "**Answer**\n\nB",
        "### Final answer:\n**B) a cat**",
        "B is the right option, as it purrs.",
        "B because it purrs",
        "The answer is B, because it purrs and a dog does not.",
        "The answer is B. Note that C has hooves.",
        "The answer is B, not C.",
        "Answer: B. The others have hooves, and C is wrong.",
        "Answer: B, a cat, rather than a dog",
        "B\n\nIt has whiskers.\nIt purrs.",
        "a cat, since it purrs",
        "My choice is B.",
        "Result: B",
        "ans: B",
        "It purrs. So it is B.",
        "B 👍",
        r"\boxed{\bf B}",
        "The answer is (B), since (A) and (C) have hooves.",
        r"\boxed{x+2}, which is option B.",
        "The answer is B.\n\n" + "It has whiskers.\n" * 100,
        "【答案】B",
        "此题选B。",
        "选B",
        "B项",
        "故选：B。",
        "答案：（B）",
        "答案为B，因为它有胡须。",
        "答案是B，不是A。",
        "B是正确的",
        r"So $x=\boxed{17}$. Hence the correct option is B.",
        "\\boxed{x+2}\n\n**B**",
        "<answer>B. a cat</answer>\nNote that A is wrong.",
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
        "B is wrong",
        "B. is wrong",
        "B. Wrong.",
        "B) cannot be right",
        "B. That is not it.",
        "B: no",
        "B. Definitely not.",
        "B would be wrong",
        "B? Yes.",
        "not B",
        "It isn't B.",
        "neither A nor B",
        "I do not think it is B",
        "anything but B",
        "The answer is not B.",
        "The wrong answer is B.",
        "The answer could be B",
        "B, perhaps",
        "B or maybe C",
        "B. or C",
        "B. a cat (or a dog)",
        "B. a cat, C. a horse",
        "B. a cat. C. a horse.",
        "B. A cat and a dog",
        "B, and C is also correct",
        "B and C are correct",
        "Both B and C",
        "B. C",
        "B; C",
        "A\nC or B",
        "a cat, a dog",
        "not a cat",
        "B. Wait, it is C",
        "B. Actually, C.",
        "The answer is B.\nWait, it is rather C",
        "B\nHmm, perhaps not",
        "B\nC is better.\nC",
        r"\boxed{A or B}. The answer is B",
        r"\boxed{B, C}",
        r"\boxed{C}. The answer is not B.",
        r"It may be \boxed{B}. But wait, let me",
        "b, c",
        "b. c",
        "B: ruled out",
        "B. All of the above",
        "A purrs. So it is not B.",
        "The answer is B.\n\n" + "It has whiskers.\n" * 100 + "Hmm, it is not.\n",
        "不是B",
        "答案不是B",
        "B不对",
        "选A或B",
        "可能是B",
    ],
)
def test_another_option_or_several_are_wrong(text: str) -> None:
    assert score("B", text) == 0.0


@pytest.mark.parametrize(
    "text", ["C. 30", "(C) 30", "C, 30", "C. 30 because 10 + 20 = 30", "30", "30 (C)", "The answer is C. 30"]
)
def test_numbers_may_be_options(text: str) -> None:
    assert score("C", text, ["10", "20", "30", "40"]) == 1.0


@pytest.mark.parametrize(
    ("options", "text", "reward"),
    [
        (["open", "not open", "half open"], "B. not open", 1),
        (["open", "not open", "half open"], "Not open, as the lights are out", 1),
        (["open", "not open", "half open"], "B. open", 0),
        (["open", "not open", "half open"], "open", 0),
        (["tower", "clock tower", "bell tower"], "the clock tower", 1),
        (["tower", "clock tower", "bell tower"], "Clock tower, not a bell tower", 1),
        (["tower", "clock tower", "bell tower"], "tower", 0),
        (["Yes", "No", "It cannot be told"], "No, it is not.", 1),
        (["Yes", "No", "It cannot be told"], "No. Yes.", 0),
        (["Yes", "No", "It cannot be told"], "B. Yes", 0),
        (["Yes", "It cannot be told"], "B. It cannot be told, because it is dark.", 1),
        (["red", "red or blue"], "B. red or blue", 1),
        (["$x$", r"$\frac{1}{3}$"], r"\boxed{\frac{1}{3}}", 1),
        (["6 kg", "8 kg"], "8kg", 1),
        (["6", "8"], "8.5", 0),
        (["6", "8"], "B. 8.5", 0),
        (["x", "y"], "B. y^2", 0),
        (["马", "猫"], "B（猫）", 1),
        (["马", "猫"], "猫（B）", 1),
        (["马", "猫"], "B.马", 0),
        (["tower", "clock", "clock tower"], "B. clock tower", 0),
    ],
)
def test_the_texts_of_options_are_told_apart(options: list[str], text: str, reward: float) -> None:
    assert score("B", text, options) == reward


@pytest.mark.parametrize("text", ["C. 20", "C. 31", "C, 31", "20 (C)", "30, 40", "30 or 40"])
def test_a_letter_with_another_number_picks_nothing(text: str) -> None:
    assert score("C", text, ["10", "20", "30", "40"]) == 0.0


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


def test_a_box_may_be_asked_for() -> None:
    boxed = multiple_choice(boxed=True)
    said = {
        r"It is \boxed{B}": 1.0,
        "B": 0.0,
        "The answer is B.": 0.0,
        "<answer>B</answer>": 0.0,
        r"\boxed{7}, so B": 0.0,
    }
    assert {text: score("B", text, verifier=boxed) for text in said} == said
    assert score("yes", r"\boxed{\text{Yes}}", None, yes_no(boxed=True)) == 1.0
    assert score("yes", "Yes", None, yes_no(boxed=True)) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "B. " * 330,
        "B, " * 330,
        "so " * 330,
        "(" * 1000,
        "A or " * 200,
        "\nB" * 500,
        "a cat " * 160,
        "B. not " + "a " * 490,
    ],
)
def test_a_pick_is_read_in_no_time(text: str) -> None:
    score("B", text)
    start = time.process_time()
    score("B", text)
    score("AC", text)
    assert time.process_time() - start < 0.5


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
