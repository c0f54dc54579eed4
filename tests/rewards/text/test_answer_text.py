"""Where an answer stands in a response."""

import pytest

from rewards.text.answer_text import after_thinking, answer_part, boxed_answers, final_answer, last_block, plain_digits
from rollout import Completion


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("[1]", "[1]"),
        ("```json\n[1]\n```", "[1]"),
        ("```\n[1]\n```", "[1]"),
        ("```[1]```", "[1]"),
        ("So:\n```json\n[1]\n```\nDone.", "[1]"),
        ("```json\n[1]\n```\n```json\n[2]\n```", "[2]"),
        ("```json\n[1]\n```\nand\n```json\n[2", "[2"),  # cut off
        ("```\n1 2\n3 4\n```", "1 2\n3 4"),
        ("<think>```json\n[1]\n```</think>[2]", "[2]"),
        ("", ""),
    ],
)
def test_the_last_block_is_found(text: str, block: str) -> None:
    assert last_block(text) == block


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("17", "17"),
        ("It is\n17\n", "17"),
        ("The answer is 17.\nReally.", "17."),
        ("Answer: 16\nAnswer: 17", "17"),
        (r"\boxed{16}, no, \boxed{17}, and so on", "17"),
        (r"\boxed{16} and \boxed{17}", "16, 17"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{17", ""),
        ("<answer> 17 </answer> is what I think", "17"),
        ("<think>16</think>17", "17"),
        ("<think>17", ""),
        ("", ""),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_thoughts_end_where_they_are_closed() -> None:
    assert after_thinking("<think>a</think>b</think>c") == "c"
    assert after_thinking("a<think>b") == ""
    assert after_thinking("a") == "a"


def test_boxes_far_apart_are_not_one_answer() -> None:
    assert boxed_answers(r"\boxed{1}, then \boxed{2} $,$ \boxed{3}") == ["2", "3"]
    assert boxed_answers(r"$x_1 = \boxed{1}$ and \(y=\boxed{2}\)") == ["1", "2"]
    assert boxed_answers(r"$x = \boxed{1}$, so $y = \boxed{2}$") == ["2"]
    assert boxed_answers("1") == []


def test_digits_of_every_script_are_digits() -> None:
    assert plain_digits("١٧ १७ １７ 17 ½ Ⅷ") == "17 17 17 17 ½ Ⅷ"


@pytest.mark.parametrize(
    ("text", "opened", "answer"),
    [
        (r"It may be \boxed{42}. But wait", True, ""),  # cut in the thought that the prompt has opened
        (r"It may be \boxed{42}. But wait", False, r"It may be \boxed{42}. But wait"),
        ("2 and 2.</think>4", True, "4"),
        ("2 and 2.</think>4", False, "4"),
        ("2 and 2.</think>4 <think>or 5", True, ""),
    ],
)
def test_a_thought_that_the_prompt_has_opened_has_no_answer_before_its_end(
    text: str, opened: bool, answer: str
) -> None:
    assert answer_part(Completion(text=text, thinking=opened)) == answer
