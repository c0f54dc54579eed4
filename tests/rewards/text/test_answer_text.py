"""Where an answer stands in a response."""

import time

import pytest

from rewards.text.answer_text import (
    after_thinking,
    answer_part,
    boxed_answers,
    final_answer,
    last_block,
    short_answer_or_all,
)
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
        ("So: ```json\n[1]\n```", "[1]"),
        ("~~~json\n[1]\n~~~\nDone.", "[1]"),
        ('["```sh\\nls\\n```"]', '["```sh\\nls\\n```"]'),
        ('```json\n["```sh\\nls\\n```"]\n```', '["```sh\\nls\\n```"]'),
        ("```json\n[1]\n```\nWait, let me check", ""),
        ("```json\n[1]\n```\nLet me check it: yes.", "[1]"),
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
        ("The best option is 17.", "17."),
        ("the correct answers are: 16 and 17", "16 and 17"),
        ("The answer to the second question is (17)", "(17)"),
        ("The answer, I know, I know\n17", "17"),
        ("To answer the question, count.\n17", "17"),
        ("## Answer\n\n17\nas it should be", "17"),
        ("**Answer:** 17", "17"),
        ("**The final answer is 17**", "17"),
        ("The answer is **17** metres", "17 metres"),
        ("The answer is\n$$\n17\n$$", "17"),
        ("Answer -> 17", "17"),
        ("Answer - 17", "17"),
        ("Answer: -17", "-17"),
        ("Answer 17", "17"),
        ("The answer isn't 17", "The answer isn't 17"),
        ("The wrong answer is 17", "The wrong answer is 17"),
        ("最终答案：17。", "17."),
        ("正确答案应该是 17", "17"),
        ("**答案**\n17", "17"),
        ("综上，选（１７）", "(17)"),
        ("答案不是17", "答案不是17"),
        ("Ответ: 17", "17"),
        ("Antwort: 17", "17"),
        (r"\boxed{１７}", "17"),
        (r"\boxed{17}. But wait, let me check whether", ""),
        (r"\boxed{17}. But wait, let me check: it is.", "17"),
        ("The answer is 17. Wait, I have to", ""),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_a_marked_answer_stands_for_the_text() -> None:
    assert short_answer_or_all(r"a \boxed{b} c") == "b"
    assert short_answer_or_all("<answer>a</answer> <answer> b </answer> c") == "b"
    assert short_answer_or_all(" a b \n") == "a b"
    assert short_answer_or_all(r"\boxed{b}, but wait, it may") == ""


@pytest.mark.parametrize(
    "text", ["answer " * 140, "answer to " * 100, "答案" * 500, "*" * 1000, "_" * 1000, "\n" * 1000]
)
def test_a_phrase_is_searched_in_linear_time(text: str) -> None:
    start = time.process_time()
    for _ in range(10):
        final_answer(text)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    "text", ["`" * 200_000, "x" + "`" * 200_000 + "y", "``` " * 50_000, "~~~" * 60_000, " " * 200_000 + "x"]
)
def test_a_fence_is_searched_in_linear_time(text: str) -> None:
    start = time.process_time()
    last_block(text)
    assert time.process_time() - start < 0.5


def test_thoughts_end_where_they_are_closed() -> None:
    assert after_thinking("<think>a</think>b</think>c") == "c"
    assert after_thinking("a<think>b") == ""
    assert after_thinking("a") == "a"


def test_boxes_far_apart_are_not_one_answer() -> None:
    assert boxed_answers(r"\boxed{1}, then \boxed{2} $,$ \boxed{3}") == ["2", "3"]
    assert boxed_answers(r"$x_1 = \boxed{1}$ and \(y=\boxed{2}\)") == ["1", "2"]
    assert boxed_answers(r"$x = \boxed{1}$, so $y = \boxed{2}$") == ["2"]
    assert boxed_answers("1") == []


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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"answer": "a blue door"}', "a blue door"),
        ('{"why": "I add them", "answer": 42}', "42"),
        ('```json\n{"answer": "42", "unit": "kg"}\n```', "42"),
        (r'{"answer": "\frac{1}{2}"}', r"\frac{1}{2}"),
        ("Answer: {1, 2}", "{1, 2}"),
        ("The options are:\nA. a dog\nB. a cat", "B. a cat"),
        ("La respuesta correcta es 42.", "42."),
        ("정답은 42입니다.", "42입니다."),
    ],
)
def test_an_answer_may_be_a_value_of_json_or_follow_a_phrase_of_another_language(text: str, answer: str) -> None:
    assert final_answer(text) == answer
