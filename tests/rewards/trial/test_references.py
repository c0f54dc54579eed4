"""References scored as responses: which verifier accepts its own, in which form, and what is told where it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

import rewards
from rewards import (
    Score,
    box_iou,
    by_task,
    count,
    exact,
    format_tags,
    gated,
    json_format,
    length_penalty,
    math_answer,
    multiple_choice,
    numeric,
    point_in_box,
    table_similarity,
    text_similarity,
    weighted,
)
from rewards.trial.references import MIN_ROWS, check_references
from rewards.types import Verifier
from rewards.workers.runner import RewardRunner
from rollout import Completion, Prompt

BOX = [{"bbox_2d": [100, 200, 300, 600], "label": "cat"}]


def prompt(number: int, answer: object, task: str = "sums", **columns: object) -> Prompt:
    return Prompt(id=f"{task}/{number}", messages=[], answer=answer, task=task, columns=columns)


def one_by_one(*prompts: Prompt) -> list[list[Prompt]]:
    return [[each] for each in prompts]


def check(reward: Verifier, rounds: Sequence[Sequence[Prompt]]) -> None:
    with RewardRunner(reward) as runner:
        check_references(runner, rounds, seconds=60.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "answer", "columns"),
    [
        (exact, "blue", {}),
        (math_answer, r"2 \sqrt { 221 }", {}),
        (math_answer, 17, {}),
        (multiple_choice, "B", {"options": ["a dog", "a cat"]}),
        (numeric(relative=0.05), "45%", {}),
        (count, 3, {}),
        (rewards.clock_time, "10:09", {}),
        (box_iou, BOX, {}),
        (box_iou, "[100, 200, 300, 600]", {}),
        (point_in_box, BOX, {}),
        (point_in_box, [100, 200, 300, 600], {}),
        (text_similarity, ["STOP", "stop sign"], {}),
        (table_similarity, [["year", "sales"], ["2020", "3"]], {}),
        (json_format, {"a": 1}, {"schema": {"type": "object"}}),
        (gated(format_tags, math_answer), "8.5", {}),
        (gated(format_tags(tags=("think", "answer")), math_answer), "8.5", {}),
    ],
)
def test_every_verifier_accepts_its_own_reference(reward, answer, columns, caplog) -> None:
    check(reward, one_by_one(*(prompt(number, answer, **columns) for number in range(2))))
    assert not caplog.messages


def test_a_task_whose_answers_its_verifier_cannot_read_is_refused_with_rows_and_reasons() -> None:
    rounds = [[prompt(i, "3"), prompt(i, "a dog", task="choice")] for i in range(6)]
    with pytest.raises(ValueError) as refusal:
        check(by_task({"sums": math_answer, "choice": multiple_choice}), rounds)
    told = str(refusal.value)
    assert told.startswith(
        "task 'choice': none of its first 6 reference answers earns a reward, in none of 5 forms: prompt 'choice/0' with the "
        "answer 'a dog' (multiple_choice cannot read the answer 'a dog'"
    )
    assert "; and 3 more. Correct the answers" in told and "--no-check-references" in told


def test_an_answer_that_can_be_read_and_never_be_said_is_refused() -> None:
    def the_sum(prompt: Prompt, completion: Completion) -> float:
        return float(completion.text == str(prompt.columns["sum"]))  # and the answer is something else

    with pytest.raises(ValueError, match="task 'sums': none of its first 5 reference answers earns a reward"):
        check(the_sum, one_by_one(*(prompt(i, "a long solution", sum=i) for i in range(5))))


def test_rows_that_fail_beside_others_that_go_well_are_told(caplog) -> None:
    check(math_answer, one_by_one(*(prompt(i, "yes, indeed" if i in (2, 5) else str(i)) for i in range(8))))
    [told] = caplog.messages
    assert told.startswith(
        "task 'sums': 2 of its first 8 reference answers earn no more than nonsense does: prompt 'sums/2'"
    )
    assert "prompt 'sums/5' with the answer 'yes, indeed' (math_answer cannot read" in told


def test_a_bonus_that_nonsense_gets_too_does_not_hide_a_wrong_answer(caplog) -> None:
    reward = weighted({"accuracy": (exact, 1.0), "format": (lambda prompt, completion: 0.1, 1.0)})
    check(reward, one_by_one(*(prompt(i, "x") for i in range(4))))
    assert not caplog.messages
    never = weighted(
        {"accuracy": (lambda prompt, completion: 0.0, 1.0), "format": (lambda prompt, completion: 0.1, 1.0)}
    )
    check(never, one_by_one(*(prompt(i, "x") for i in range(4))))
    assert caplog.messages[0].startswith("task 'sums': 4 of its first 4 reference answers earn no more than nonsense")


def test_a_reward_that_looks_at_something_else_than_the_answer_is_told_and_goes_on(caplog) -> None:
    def short(prompt: Prompt, completion: Completion) -> float:
        return -0.01 * len(completion.token_ids)  # nonsense is as long as the answer, so that neither looks better

    check(short, one_by_one(*(prompt(i, "17") for i in range(4))))
    assert caplog.messages[0].startswith("task 'sums': 4 of its first 4 reference answers earn no more than nonsense")


def test_a_reward_of_minus_one_for_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="none of its first 4 reference answers earns a reward"):
        check(lambda prompt, completion: -1.0, one_by_one(*(prompt(i, "17") for i in range(4))))


def test_penalties_of_which_the_right_answer_has_none_are_accepted(caplog) -> None:
    def error(prompt: Prompt, completion: Completion) -> float:
        text = completion.text
        return -abs(float(text) - prompt.answer) if text.isdigit() else -100.0

    reward = weighted({"error": (error, 1.0), "length": (length_penalty(max_tokens=64, buffer=32), 1.0)})
    check(reward, one_by_one(*(prompt(i, i) for i in range(4))))
    assert not caplog.messages


def test_one_bad_row_of_a_task_of_which_little_was_seen_does_not_end_the_run(caplog) -> None:
    check(math_answer, [[prompt(0, "3"), prompt(0, "dark blue, maybe", task="colours")], *one_by_one(prompt(1, "4"))])
    assert caplog.messages[0].startswith("task 'colours': 1 of its first 1 reference answers")


def test_prompts_without_an_answer_are_left_out(caplog) -> None:
    check(math_answer, one_by_one(*(prompt(i, None) for i in range(5))))
    assert not caplog.messages


def test_it_takes_no_longer_than_it_may_but_for_the_first_rows() -> None:
    seen: list[int] = []

    def slowly() -> Iterator[list[Prompt]]:
        for number in range(64):
            seen.append(number)
            time.sleep(0.02)
            yield [prompt(number, "3")]

    with RewardRunner(lambda prompt, completion: float(completion.text == "3")) as runner:
        check_references(runner, slowly(), seconds=0.0)
    assert len(seen) == MIN_ROWS


def test_a_reward_that_raises_is_told_in_its_own_words() -> None:
    def broken(prompt: Prompt, completion: Completion) -> Score:
        raise KeyError("level")

    with pytest.raises(ValueError, match=r"\(reward 'broken' raised KeyError: 'level'"):
        check(broken, one_by_one(prompt(0, "3")))
