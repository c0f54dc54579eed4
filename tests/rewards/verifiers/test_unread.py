"""Responses in which a verifier finds no answer are told apart from wrong answers; both earn nothing."""

from typing import Any

import pytest

import rewards
from rewards.types import UNREAD, Unread, Verifier
from rewards.workers.call import call_verifier
from rollout import Completion, Prompt

CAT = [{"bbox_2d": [100, 200, 300, 600], "label": "cat"}]
OPTIONS = {"options": ["a spoon", "a fork", "a knife"]}
TABLE = [["fruit", "kg"], ["plums", "7"]]
SUM = {"tests": [{"input": "2 3", "output": "5"}]}


def unread(verifier: Verifier, text: str, answer: Any = None, thinking: bool = False, **columns: Any) -> bool:
    """Returns whether a response is unread; it must earn nothing."""
    prompt = Prompt(id="u-1", messages=[], answer=answer, columns=columns)
    score = call_verifier(verifier, prompt, Completion(text=text, thinking=thinking))
    assert score.reward == 0.0 and score.error is None
    return score.unread


@pytest.mark.parametrize(
    ("verifier", "answer", "columns", "no_answer", "wrong"),
    [
        (rewards.exact, "plum", {}, " \n", "pear"),
        (rewards.multiple_choice, "B", OPTIONS, "It is hard to see.", "C"),
        (rewards.multiple_choice, "B", OPTIONS, "", "a knife"),
        (rewards.multiple_choice, "AB", OPTIONS, "I do not know.", "A, C"),
        (rewards.multiple_choice(boxed=True), "B", OPTIONS, "B", r"\boxed{C}"),
        (rewards.yes_no, "yes", {}, "The picture is dark.", "No."),
        (rewards.box_iou, CAT, {}, "The cat sleeps on the sofa.", "[700, 700, 800, 800]"),
        (rewards.box_iou, CAT, {}, "[100, 200, 300", "There is no cat in the picture."),
        (rewards.box_iou, [], {}, "", "[700, 700, 800, 800]"),
        (rewards.point_in_box, CAT, {}, "In the middle.", '{"point_2d": [900, 900]}'),
        (rewards.json_format(schema={"type": "object"}), None, {}, "a list of two plums", "[1, 2]"),
        (rewards.json_format, None, {}, '{"plums": ', "7"),
        (rewards.table_similarity, TABLE, {}, "There are plums.", "| a | b |\n|---|---|\n| cdefgh | 99 |"),
        (rewards.text_similarity, "plum", {}, "<think>plum", "a pear"),
        (rewards.instruction_following, None, {"instructions": {"min_words": 3}}, "", "two words"),
        (rewards.language_matches, None, {"language": "fr"}, "", "There are seven plums on the table, and a knife."),
        (rewards.code_tests, None, SUM, "", "```python\nprint(4)\n```"),
        (rewards.code_tests, None, SUM, "I cannot write this program.", "print(4)"),
    ],
)
def test_a_response_without_an_answer_is_unread_and_a_wrong_one_is_not(
    verifier: Verifier, answer: object, columns: dict[str, Any], no_answer: str, wrong: str
) -> None:
    assert unread(verifier, no_answer, answer, **columns)
    assert not unread(verifier, wrong, answer, **columns)


@pytest.mark.parametrize(
    ("verifier", "answer", "columns", "right"),
    [
        (rewards.multiple_choice, "B", OPTIONS, r"\boxed{B}"),
        (rewards.yes_no, "yes", {}, "Yes."),
        (rewards.box_iou, CAT, {}, "[100, 200, 300, 600]"),
        (rewards.box_iou, [], {}, "There is no cat in the picture."),
        (rewards.point_in_box, CAT, {}, '{"point_2d": [200, 400]}'),
        (rewards.json_format, None, {}, '{"plums": 7}'),
        (rewards.table_similarity, TABLE, {}, "| fruit | kg |\n|---|---|\n| plums | 7 |"),
        (rewards.text_similarity, "plum", {}, "plum"),
        (rewards.instruction_following, None, {"instructions": {"min_words": 1}}, "plum"),
        (rewards.code_tests, None, SUM, "```python\nprint(5)\n```"),
    ],
)
def test_a_thought_that_was_cut_has_no_answer_whatever_stands_in_it(
    verifier: Verifier, answer: object, columns: dict[str, Any], right: str
) -> None:
    prompt = Prompt(id="u-1", messages=[], answer=answer, columns=columns)
    assert call_verifier(verifier, prompt, Completion(text=f"Let me see.</think>{right}", thinking=True)).reward == 1.0
    assert unread(verifier, f"Let me see. {right}", answer, thinking=True, **columns)
    assert unread(verifier, f"<think>Let me see. {right}", answer, **columns)


def test_an_unread_reward_is_a_number_like_any_other() -> None:
    assert isinstance(UNREAD, Unread) and UNREAD == 0.0 and UNREAD + 0.5 == 0.5
