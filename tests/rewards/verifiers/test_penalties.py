"""What is too long, says the same again, or is not in its form; and how many tools it took."""

import json

import numpy as np
import pytest

from rewards.verifiers.format_tags import format_tags
from rewards.verifiers.length_penalty import length_penalty
from rewards.verifiers.repetition_penalty import repetition_penalty
from rewards.verifiers.tool_calls_target import tool_calls_target
from rollout import Completion, Prompt
from rollout.types import Observation, Turn

PROMPT = Prompt(id="p-1", messages=[])
PROSE = """The picture shows five dogs that play in the snow near a small house with a red roof. Two of them are brown, one is
black, and the others have spots. To find the answer we count all the legs: each dog has four, so there are twenty in all."""


def tokens(number: int) -> Completion:
    return Completion(text="", token_ids=np.zeros(number, np.int32))


@pytest.mark.parametrize(
    ("number", "penalty"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1), (10**6, -1)]
)
def test_the_penalty_grows_from_the_buffer_to_the_limit(number: int, penalty: float) -> None:
    assert length_penalty(max_tokens=100, buffer=20)(PROMPT, tokens(number)) == pytest.approx(penalty)


def test_what_an_environment_has_shown_is_not_the_policys_length() -> None:
    turns = [
        Turn(text="look", start=0, stop=10, observation=Observation(text="…")),
        Turn(text="5", start=90, stop=100),
    ]
    completion = Completion(text="5", token_ids=np.zeros(100, np.int32), turns=turns)
    assert length_penalty(max_tokens=100, buffer=20)(PROMPT, completion) == 0
    assert length_penalty(max_tokens=20, buffer=10)(PROMPT, completion) == -1


@pytest.mark.parametrize("options", [{"buffer": 0}, {"max_tokens": 10, "buffer": 11}])
def test_a_buffer_that_does_not_fit_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="buffer of length_penalty must be from 1 to max_tokens"):
        length_penalty(**options)


def test_repeated_ngrams_are_counted_beyond_what_is_allowed() -> None:
    # a b c a b c a b: bigrams ab bc ca ab bc ca ab, of which 4 in 7 are repeated.
    verify = repetition_penalty(ngram=2, allowed=0.0, most=0.5)
    assert verify(PROMPT, Completion(text="a b c a b c a b")) == pytest.approx(-0.5 * 4 / 7)
    half = repetition_penalty(ngram=2, allowed=0.5)
    assert half(PROMPT, Completion(text="a b c a b c a b")) == pytest.approx(-(4 / 7 - 0.5) / 0.5)


@pytest.mark.parametrize(
    "text", ["", "a", PROSE, "图片里有五只狗，它们在雪地里玩耍。", "1 + 2 = 3, 3 + 4 = 7, 7 + 5 = 12"]
)
def test_prose_costs_nothing(text: str) -> None:
    assert repetition_penalty(PROMPT, Completion(text=text)) == 0.0


BOXES = [{"bbox_2d": [17 * i, 3 * i, 20 * i + 9, 40 * i + 9], "label": "car", "truncated": False} for i in range(1, 25)]
ROWS = [f"| day {i} | {7 * i} | yes | no | no |" for i in range(20)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(BOXES),
        "```json\n" + json.dumps(BOXES[:4], indent=2) + "\n```",
        "[\n\t" + ",\n\t".join(map(str, BOXES)) + "\n]",
        "\n".join(["| day | n | a | b | c |", "|---|---|---|---|---|", *ROWS]),
        "<table>" + "".join(f"<tr><td>day {i}</td><td>{7 * i}</td><td>no</td></tr>" for i in range(20)) + "</table>",
        "<table>\n" + "".join(f"<tr>\n <td>{i}</td>\n <td>no</td>\n</tr>\n" for i in range(20)) + "</table>",
        "|" + " :---: |" * 30,
        "═" * 80 + "\nAll: 5\n" + "═" * 80,
        "-" * 80 + "\n" + PROSE + "\n" + "=" * 80,
    ],
)
def test_records_and_rules_cost_nothing(text: str) -> None:
    assert repetition_penalty(PROMPT, Completion(text=text)) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "wait, " * 200,
        json.dumps(BOXES[:1] * 100),
        "| day 1 | 7 | yes |\n" * 100,
        "<tr><td>day 1</td><td>7</td></tr>" * 100,
        "<td></td>" * 400,
        "---\n" * 400,
        "-" * 3000,
        "| --- " * 300,
        "a" * 5000,
        "哈" * 500,
        "!" * 3000,
        "😀" * 1000,
        "\n- no" * 300,
        (PROSE + "\n") * 20,
        "ab" * 2_500_000,
    ],
)
def test_a_loop_costs_nearly_all(text: str) -> None:
    assert -1.0 <= repetition_penalty(PROMPT, Completion(text=text)) < -0.85


@pytest.mark.parametrize(
    ("options", "told"), [({"ngram": 0}, "ngram"), ({"allowed": 1.0}, "allowed"), ({"most": -1.0}, "most")]
)
def test_options_of_repetition_penalty_are_checked(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=f"{told} of repetition_penalty must be"):
        repetition_penalty(**options)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a cat</think>B", 1),
        ("\n<think>\na cat\n</think>\n\nB", 1),
        ("<think>a < b and c > d</think>B", 1),
        ("", 0),
        ("B", 0),
        ("<think></think>B", 0),
        ("<think> \n</think>B", 0),
        ("<think>a cat</think>", 0),
        ("<think>a cat</think> \n", 0),
        ("Well. <think>a cat</think>B", 0),
        ("<think>a cat", 0),
        ("a cat</think>B", 1),
        ("<think>a<think>b</think>c</think>B", 0),
        ("<think>a</think><think>b</think>B", 0),
        ("</think>a<think>B", 0),
        ("<Think>a</Think>B", 0),
        ("<think>" * 100_000, 0),
    ],
)
def test_thoughts_come_first_once_and_the_answer_follows(text: str, reward: float) -> None:
    assert format_tags(PROMPT, Completion(text=text)) == reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think><answer>B</answer>", 1),
        ("<think>a</think>\n<answer>B</answer>\n", 1),
        ("<think>a</think> so <answer>B</answer>", 0),
        ("<think>a</think><answer>B</answer>!", 0),
        ("<answer>B</answer><think>a</think>", 0),
        ("<think>a<answer>B</answer></think>", 0),
        ("<think>a</think>B", 0),
    ],
)
def test_several_tags_follow_one_another(text: str, reward: float) -> None:
    assert format_tags(tags=("think", "answer"))(PROMPT, Completion(text=text)) == reward


@pytest.mark.parametrize("tags", [(), "think", ("think", "think"), ("<think>",)])
def test_tags_that_are_no_names_are_refused(tags: object) -> None:
    with pytest.raises(ValueError, match="tags of format_tags must be different names"):
        format_tags(tags=tags)


def episode(calls: int) -> Completion:
    turns = [Turn(text="look", start=i, stop=i + 1, observation=Observation()) for i in range(calls)]
    return Completion(text="5", turns=[*turns, Turn(text="5", start=calls, stop=calls + 1)])


@pytest.mark.parametrize(
    ("target", "calls", "reward"),
    [(0, 0, 1), (0, 1, 0), (1, 1, 1), (1, 0, 0), (1, 2, 0), (4, 3, 0.75), (4, 5, 0.75), (4, 0, 0), (4, 9, 0)],
)
def test_calls_are_held_against_their_target(target: int, calls: int, reward: float) -> None:
    prompt = Prompt(id="p-1", messages=[], columns={"tool_calls": target})
    assert tool_calls_target(prompt, episode(calls)) == reward


def test_without_a_target_or_an_episode_there_is_no_verdict() -> None:
    for target in (None, -1, 1.5, True, "2"):
        assert (
            "whole number >= 0"
            in tool_calls_target(Prompt(id="p-1", messages=[], columns={"tool_calls": target}), episode(1)).error
        )
    prompt = Prompt(id="p-1", messages=[], columns={"tool_calls": 1})
    assert (
        "was answered without an environment; give train() one" in tool_calls_target(prompt, Completion(text="5")).error
    )
