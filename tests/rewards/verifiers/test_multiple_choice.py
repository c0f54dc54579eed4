"""A response that picks an option by its letter, its text or both, and what takes a pick back."""

import time
from typing import Any

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


def test_formulas_may_be_options() -> None:
    assert score("B", "$x^2$", ["$x$", "(B) $x^2$"]) == 1.0
    assert score("$2*3$", "2*3", ["2*3", "23"]) == 1.0


@given(st.text(max_size=50).filter(lambda text: "b" not in text.casefold() and "cat" not in text.casefold()))
@settings(max_examples=200, deadline=None)
def test_text_without_the_letter_and_the_option_is_never_right(text: str) -> None:
    assert score("B", text) == 0.0


TOOLS = ["a saw", "a hammer", "a drill", "an axe"]


@pytest.mark.parametrize(
    "text",
    [
        "I am going with option B here.",
        "B is the only one with a wooden handle.",
        "Option B is the only choice that drives nails.",
        "The other three cut or drill, so B.",
        "It drives nails. Therefore, the tool is B, thus the answer is B.",
        "Looking at the options:\nA. a saw cuts\nB. a hammer drives nails\n\nThe man drives a nail, so B.",
        "The tool in his hand is a hammer.",
        "The photo shows a hammer.",
        "This is the hammer.",
        '{"answer": "B"}',
        '```json\n{"reason": "it drives nails", "answer": "B"}\n```',
        '{"answer": "B", "sure": true}',
        "La respuesta correcta es B.",
        "正解はBです。",
        "정답은 B입니다.",
        "B项符合要求。",
    ],
)
def test_what_people_write_around_a_pick_does_no_harm(text: str) -> None:
    assert score("B", text, TOOLS) == 1.0
    assert score("C", text, TOOLS) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "B, so C",
        "My answer was B, now it is C.",
        "It is heavy, so B, so C.",
        "B\n\nC is also possible.",
        "The options:\nB. a hammer\nC. a drill",
        "The photo does not show a hammer.",
        "The photo shows a hammer and a drill.",
        "The tool is a hammer or a drill.",
        "The least likely one is a hammer.",
        "The question is whether the tool is a hammer.",
        "It is heavy, so it isn't B.",
        '{"answer": "not B"}',
    ],
)
def test_what_sounds_like_a_pick_and_is_none_earns_nothing(text: str) -> None:
    assert score("B", text, TOOLS) == 0.0
