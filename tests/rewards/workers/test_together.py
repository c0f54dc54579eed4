"""Rewards that see all siblings, are async, or ask for the form first; what comes twice, and what takes too much memory."""

import asyncio
import os
import time
from pathlib import Path

import numpy as np
import pytest

from rewards import Score, by_task, exact, gated, of_group, weighted
from rewards.loading import load_reward
from rewards.workers.call import is_group_reward, score_completions
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group, Prompt

PROMPT = Prompt(id="p-7", messages=[], answer="17", task="sums")


def said(*texts: str) -> list[Completion]:
    return [Completion(text=text) for text in texts]


def group(*texts: str) -> Group:
    return Group(prompt=PROMPT, prompt_token_ids=np.zeros(3, np.int32), completions=said(*texts))


@of_group
def rank(prompt, completions):
    lengths = sorted(len(completion.text) for completion in completions)
    return [lengths.index(len(completion.text)) for completion in completions]


async def slowly(prompt, completion):
    if completion.text == "raise":
        raise KeyError("answer")
    await asyncio.sleep(0.2)
    return float(len(completion.text))


def test_a_group_function_compares_siblings() -> None:
    assert [score.reward for score in score_completions(rank, PROMPT, said("aaa", "a", "aa"))] == [2.0, 0.0, 1.0]
    assert rank(PROMPT, said("aaa")[0]) == 0


def test_an_async_reward_waits_for_all_siblings_at_once_and_loses_one_verdict_by_an_error() -> None:
    start = time.monotonic()
    scores = score_completions(slowly, PROMPT, said("a", "raise", *["abc"] * 20))
    assert time.monotonic() - start < 2.0  # one after the other they would take 4 s
    assert [score.reward for score in scores] == [1.0, 0.0, *[3.0] * 20]
    assert [score.failed for score in scores] == [None, "slowly", *[None] * 20]
    assert (
        scores[1].error is not None and "reward 'slowly' raised KeyError: 'answer' for prompt 'p-7'" in scores[1].error
    )


def test_what_an_environment_broke_off_is_shown_to_no_sibling() -> None:
    broken = Completion(text="aaaa", error="the environment raised")
    scores = score_completions(rank, PROMPT, [*said("aaa"), broken, *said("a")])
    assert [score.reward for score in scores] == [1.0, 0.0, 0.0]
    assert (scores[1].error, scores[1].failed) == ("the environment raised", "episode")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda prompt, completions: [1.0], "returned 1 scores for 2 completions of prompt 'p-7'; return one for each"),
        (lambda prompt, completions: 1.0, "raised TypeError: 'float' object is not iterable for prompt 'p-7'"),
        (lambda prompt, completions: [1.0, "yes"], "returned 'yes' (str) for prompt 'p-7'; return a finite float or"),
    ],
)
def test_a_group_function_that_returns_something_else_is_an_error(function, told: str) -> None:
    scores = score_completions(of_group(function), PROMPT, said("a", "b"))
    assert scores[1].error is not None and scores[1].error.startswith(f"reward '<lambda>' {told}")


def test_compositions_hand_siblings_on_and_show_each_part() -> None:
    both = weighted({"accuracy": (exact, 1.0), "rank": (rank, 0.5), "wait": (slowly, 0.0)})
    assert is_group_reward(both) and is_group_reward(by_task({"sums": both})) and is_group_reward(gated(exact, both))
    assert not is_group_reward(weighted({"accuracy": (exact, 1.0)}))
    for reward in (both, by_task({"sums": both})):
        scores = score_completions(reward, PROMPT, said("17", "1", "raise"))
        assert scores[0] == Score(reward=1.5, parts={"accuracy": 1.0, "rank": 1.0, "wait": 2.0})
        assert scores[1] == Score(reward=0.0, parts={"accuracy": 0.0, "rank": 0.0, "wait": 1.0})
        assert (scores[2].failed, scores[2].parts) == ("wait/slowly", {"accuracy": 0.0, "rank": 2.0})


def test_a_gate_keeps_the_reward_from_being_called() -> None:
    called = []

    def reward(prompt: Prompt, completion: Completion) -> Score:
        called.append(completion.text)
        return Score(reward=2.0, parts={"inner": 0.5})

    gate = gated(exact, reward, otherwise=-1.0)
    scores = score_completions(gate, PROMPT, said("17", "18"))
    assert scores == [Score(reward=2.0, parts={"gate": 1.0, "inner": 0.5}), Score(reward=-1.0, parts={"gate": 0.0})]
    assert called == ["17"]


def test_a_gate_without_a_verdict_leaves_none() -> None:
    [score] = score_completions(gated(exact, exact), Prompt(id="p-7", messages=[]), said("17"))
    assert score.error == "part 'gate': exact needs an answer, and prompt 'p-7' has none"
    assert score.failed == "gate/exact"


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ValueError, match="of_group takes a function of \\(prompt, completions\\), got 1"):
        of_group(1)
    with pytest.raises(ValueError, match="the gate of gated must be a function, got 'exact'"):
        gated("exact", exact)


@pytest.mark.parametrize("kind", ["of_group", "async"])
def test_a_call_for_a_whole_group_that_hangs_or_dies_costs_the_group_and_not_the_next(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "mine.py"
    head = (
        "@of_group\ndef score(prompt, completions):" if kind == "of_group" else "async def score(prompt, completion):"
    )
    texts = "[completion.text for completion in completions]" if kind == "of_group" else "[completion.text]"
    result = "[1.0] * len(texts)" if kind == "of_group" else "1.0"
    path.write_text(
        f"import os, time\nfrom rewards import of_group\n{head}\n    texts = {texts}\n    if 'hang' in texts: time.sleep(99)\n"
        f"    if 'die' in texts: os._exit(3)\n    return {result}\n"
    )
    with RewardRunner(load_reward(f"{path}:score"), timeout=1.0) as runner:
        runner.score([group("warm")])
        hung, died, good = runner.score([group("a", "hang"), group("die", "a", "b"), group("a", "b")])
    assert [score.error for score in hung] == ["reward 'score' took longer than 1 s for prompt 'p-7'"] * 2
    assert [score.error for score in died] == ["reward 'score' ended its process (exit code 3) for prompt 'p-7'"] * 3
    assert {score.failed for score in [*hung, *died]} == {"score"}
    assert good == [Score(reward=1.0)] * 2


def test_what_comes_twice_is_scored_once_and_an_error_is_tried_again() -> None:
    def counting(prompt: Prompt, completion: Completion) -> float:
        os.calls = getattr(os, "calls", 0) + 1
        if completion.text == "raise":
            raise KeyError(os.calls)
        return float(os.calls)

    with RewardRunner(counting, num_cached=2) as runner:
        [first] = runner.score([group("a", "b", "a", "raise", "raise")])
        [second] = runner.score([group("b", "c", "a")])
        [other] = runner.score(
            [Group(prompt=Prompt(id="p-8", messages=[]), prompt_token_ids=np.zeros(1), completions=said("c"))]
        )
    assert [score.reward for score in first[:3]] == [1.0, 2.0, 1.0]
    assert [score.error is None for score in first] == [True, True, True, False, False]
    assert "KeyError: 4" in str(first[4].error)
    assert [score.reward for score in second] == [2.0, 5.0, 6.0]  # room for two: c has pushed a out
    assert other[0].reward == 7.0  # another prompt, another question


def test_a_reward_that_takes_too_much_memory_costs_one_verdict() -> None:
    def greedy(prompt: Prompt, completion: Completion) -> float:
        return float(len(bytearray(int(completion.text) << 20)) > 0)

    with RewardRunner(greedy, memory_gib=0.25) as runner:
        [scores] = runner.score([group("1", "1000", "1")])
    assert [score.reward for score in scores] == [1.0, 0.0, 1.0]
    assert "MemoryError" in str(scores[1].error)
    with pytest.raises(ValueError, match="memory_gib must be >= 0, got -1"):
        RewardRunner(greedy, memory_gib=-1)
