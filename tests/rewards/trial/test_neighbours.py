"""Neighbours of references: a reward that pays one as much as the reference itself is named, a right one is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import cast

import pytest

import rewards
from rewards import Score, gated, json_format, math_answer, multiple_choice, numeric, weighted
from rewards.trial.neighbours import MOST, neighbours
from rewards.trial.references import check_references
from rewards.types import Verifier
from rewards.workers.call import score_completions
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group, Prompt
from tests.rewards.cases import CASES

TWO = [
    {"bbox_2d": [100, 200, 300, 600], "label": "cat"},
    {"bbox_2d": [500, 200, 700, 600], "label": "dog"},
]
PETS = {"options": ["a dog", "a cat", "a horse"]}


def prompt(answer: object, task: str = "sums", **columns: object) -> Prompt:
    return Prompt(id=f"{task}/1", messages=[], answer=answer, task=task, columns=columns)


class Here:
    """Scores in this process, as a `RewardRunner` does in others."""

    def __init__(self, reward: Verifier) -> None:
        self.reward = reward
        self.asked: list[str] = []

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        self.asked += [group.prompt.id for group in groups]
        return [score_completions(self.reward, group.prompt, group.completions) for group in groups]


def check(reward: Verifier, *prompts: Prompt) -> None:
    check_references(cast(RewardRunner, Here(reward)), [[each] for each in prompts], seconds=60.0)


@pytest.mark.parametrize(
    ("answer", "columns", "found"),
    [
        ("5", {}, ["9", "15"]),
        (17, {}, ["57", "117"]),
        ("3.14", {}, ["7.14", "13.14"]),
        ("-6", {}, ["-2", "6"]),
        ("0.05", {}, ["4.05", "10.05"]),
        ("1/2", {}, ["5/2", "1/6"]),
        ("2010", {}, ["1925", "12010"]),
        ("5 m", {}, ["9 m", "5 s"]),
        ("5 million", {}, ["9 million", "5 billion"]),
        ("3 hours 20 minutes", {}, ["7 hours 20 minutes", "3 hours 920 minutes"]),
        ("3, 5, and 7", {}, ["7, 5, and 7", "3, 5, and 3", "3, 9, and 7", "3, 5"]),
        (r"\frac{\pi^{17}}{3}", {}, [r"\frac{\pi^{17}}{7}"]),
        ("x_1 = 2", {}, ["x_1 = 6"]),
        ("8+6+5=19", {}, ["8+6+5=59"]),
        ("Each has 3 and 4.\n#### 7", {}, ["Each has 3 and 4.\n#### 3", "Each has 3 and 4.\n#### 17"]),
        ("10:09", {}, ["2:09", "10:39"]),
        ("seven", {}, ["twelve"]),
        ("B", {}, ["C", "A"]),
        ("B", PETS, ["A", "C"]),
        ("a cat", PETS, ["a dog", "a horse"]),
        ("ACD", {}, ["ACZ", "STONE", "ACDstone"]),
        ("yes", {}, ["no", "stone", "yesstone"]),
        ("是", {}, ["否"]),
        ("blue", {}, ["stone", "bluestone"]),
        ("It rains all day in the mountains, so nobody goes out.", {}, []),
        ("[100, 200, 300, 600]", {}, ["[0, 600.0, 200.0, 1000.0]"]),
    ],
)
def test_neighbours_are_wrong_answers_of_the_same_form(
    answer: object, columns: dict[str, object], found: list[str]
) -> None:
    assert neighbours(prompt(answer, **columns), str(answer)) == found


def test_boxes_move_and_vanish_and_exchange_their_labels() -> None:
    import json

    moved, fewer, exchanged = map(json.loads, neighbours(prompt(TWO), json.dumps(TWO)))
    assert moved == [{"bbox_2d": [0, 600, 200, 1000], "label": "cat"}, TWO[1]] and fewer == TWO[:1]
    assert [each["label"] for each in exchanged] == ["dog", "cat"]
    assert neighbours(prompt([[0, 0, 1000, 1000]]), "[[0, 0, 1000, 1000]]") == []  # there is no other place


def last_number(prompt: Prompt, completion: Completion) -> float:
    read = [re.findall(r"\d+", text)[-1:] for text in (completion.text, str(prompt.answer))]
    return float(bool(read[0]) and read[0] == read[1])


def contains(prompt: Prompt, completion: Completion) -> float:
    return float(str(prompt.answer) in completion.text)


def first_letter(prompt: Prompt, completion: Completion) -> float:
    return float(completion.text.strip("\n</>think…boxed{}\\")[:1] == str(prompt.answer)[:1])


def any_number(prompt: Prompt, completion: Completion) -> float:
    return float(any(map(str.isdigit, completion.text)))


def near(prompt: Prompt, completion: Completion) -> float:
    try:
        return float(abs(float(completion.text) - float(prompt.answer)) <= 0.05 * float(prompt.answer))
    except ValueError:
        return 0.0


def ignores_labels(prompt: Prompt, completion: Completion) -> float:
    numbers = [sorted(re.findall(r"\d+", text.replace("_2d", ""))) for text in (completion.text, str(prompt.answer))]
    return float(numbers[0] == numbers[1])


@pytest.mark.parametrize(
    ("reward", "answer", "paid"),
    [
        (last_number, "3 hours 20 minutes", "'7 hours 20 minutes'"),
        (last_number, "3, 5, and 7", "'7, 5, and 7' and '3, 9, and 7'"),
        (last_number, "5 m", "'5 s'"),
        (last_number, "-6", "'6'"),
        (contains, "5", "'15'"),
        (contains, "blue", "'bluestone'"),
        (first_letter, "ACD", "'ACZ' and 'ACDstone'"),
        (any_number, "5", "'9' and '15'"),
        (near, "2010", "'1925'"),
        (ignores_labels, TWO, '\'[{"bbox_2d": [100, 200, 300...'),
    ],
)
def test_a_reward_that_pays_a_neighbour_is_named_with_both_answers(
    reward: Callable[[Prompt, Completion], float], answer: object, paid: str, caplog: pytest.LogCaptureFixture
) -> None:
    check(reward, prompt(answer))
    [told] = caplog.messages
    start = "task 'sums': the reward pays wrong answers as much as the reference: prompt 'sums/1' with the answer "
    assert told.startswith(start) and f" also pays {paid}" in told


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.answer is not None])
def test_no_verifier_is_named_for_its_own_reference(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check(CASES[name].verifier, CASES[name].prompt)
    assert not [told for told in caplog.messages if "wrong answers" in told]


ANSWERS: list[object] = [
    *("5", "3.14", "1/2", "2010", "45%", "5 m", "5 million", "3 hours 20 minutes", "3, 5, and 7", "x = 5", "12:30 pm", "-7", "0"),
    *("B", "yes", "blue", "STOP", "a cat", "Q4 2019", "July 4, 1776", "5^0", "0/5", "2 1/2", "9:15:00", "8+6+5=19", "Paris, Rome"),
    *(7, 8.5, True, ["STOP", "stop sign"], ["A", "C"], [["year", "sales"], ["2020", "3"]], [0, 0, 1000, 1000], TWO, TWO[:1], []),
]  # fmt: skip


@pytest.mark.parametrize(
    "reward",
    [
        math_answer,
        multiple_choice,
        rewards.yes_no,
        numeric(relative=0.05),
        rewards.clock_time(tolerance=5),
        rewards.box_iou(threshold=0.5),
        rewards.point_in_box,
        rewards.text_similarity,
        rewards.table_similarity,
        json_format,
        rewards.language_matches,
        rewards.length_penalty,
        gated(rewards.format_tags, math_answer),
        rewards.first_readable(numeric(relative=0.05), rewards.text_similarity(threshold=1.0)),
        weighted({"answer": (rewards.exact, 1.0), "language": (rewards.language_matches, 0.2)}),
    ],
    ids=lambda reward: reward.__name__,
)
def test_no_verifier_is_named_for_references_of_other_kinds(reward: Verifier, caplog: pytest.LogCaptureFixture) -> None:
    for answer in ANSWERS:
        try:
            check(reward, prompt(answer))
        except ValueError as error:
            assert "none of its first" in str(error)  # it cannot read this one
    assert not [told for told in caplog.messages if "wrong answers" in told]


def test_a_reward_for_the_form_alone_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    def is_upper(prompt: Prompt, completion: Completion) -> float:
        return float(completion.text.isupper())

    check(is_upper, prompt("STOP"))
    check(json_format, prompt(TWO))
    check(rewards.instruction_following, prompt("STOP", instructions={"case": "upper", "min_words": 1}))
    assert not caplog.messages


def test_neighbours_are_tried_in_the_first_round_and_while_time_lasts() -> None:
    runner = Here(contains)
    rounds = [[Prompt(id=str(number), messages=[], answer="5")] for number in range(3)]
    check_references(cast(RewardRunner, runner), rounds, seconds=0.0)
    assert runner.asked == ["0", "0", "1", "2"] and MOST == 5
