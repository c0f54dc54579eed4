"""From recorded completions to figures: which answers are the same, what counts as correct, what errors do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.types import Score
from rl.evaluation.results import (
    CorrectnessRule,
    PromptResult,
    evaluation_metrics,
    pass_rate,
    powers_of_two,
    prompt_result,
    summarise,
)
from rl.run_dir.transcripts import transcript
from rollout import Completion, Group, Prompt


def outcome(
    correct: str, *, task: str = "sums", answers: str = "", errors: int = 0, truncated: int = 0
) -> PromptResult:
    """`correct` has a letter for each sample with a verdict: r is right, w is wrong."""
    judged = [letter == "r" for letter in correct]
    return PromptResult(
        prompt_id=f"{task}-{correct}",
        task=task,
        correct=judged,
        answers=answers.split() or ["17" if right else f"wrong {i}" for i, right in enumerate(judged)],
        rewards=[float(right) for right in judged],
        lengths=[10] * (len(judged) + errors),
        num_truncated=truncated,
        errors={"judge": errors} if errors else {},
    )


def test_figures_of_two_prompts_by_hand() -> None:
    figures = summarise([outcome("rwww"), outcome("rrww", answers="17 17 9 8")], 4)["overall"]["figures"]
    values = {name: figure["value"] for name, figure in figures.items()}
    # pass@2: 1 − 3/6 and 1 − 1/6. Majority: the first prompt's four answers tie, one of them is right; the second's is.
    expected = {"avg@4": 3 / 8, "pass@1": 3 / 8, "pass@2": (1 / 2 + 5 / 6) / 2, "pass@4": 1.0, "majority@4": 5 / 8}
    assert values == pytest.approx(expected)
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures.values())


def test_tasks_are_told_apart_and_weigh_the_same_in_their_mean() -> None:
    found = summarise([outcome("rr")] * 3 + [outcome("rw", task="vqa")], 2)
    assert {task: figures["figures"]["avg@2"]["value"] for task, figures in found["tasks"].items()} == {
        "sums": 1.0,
        "vqa": 0.5,
    }
    assert found["overall"]["figures"]["avg@2"]["value"] == pytest.approx(3.5 / 4)
    assert found["mean_over_tasks"]["avg@2"] == pytest.approx(0.75)


def test_samples_without_a_verdict_are_counted_and_are_neither_right_nor_wrong() -> None:
    found = summarise([outcome("rr", errors=2), outcome("wwww"), outcome("", errors=4)], 4)["overall"]
    assert (found["prompts"], found["samples"], found["without_verdict"], found["errors"]) == (3, 12, 6, {"judge": 6})
    figures = found["figures"]
    assert (figures["avg@4"]["value"], figures["avg@4"]["prompts"]) == (0.5, 2)  # and not (2 + 0 + 0) / 12
    assert (figures["pass@4"]["value"], figures["pass@4"]["prompts"]) == (0.0, 1)  # the other has two verdicts only


def test_without_any_verdict_there_is_no_figure() -> None:
    found = summarise([outcome("", errors=4)], 4)["overall"]
    assert (found["figures"], found["reward"], found["without_verdict"]) == ({}, None, 4)
    assert evaluation_metrics([outcome("", errors=4)], 4) == {"sums/errors": 4.0}


def test_lengths_and_truncation() -> None:
    found = summarise([outcome("rw", truncated=1), outcome("rw")], 2)["overall"]
    assert found["truncated"] == 0.25
    assert found["tokens"] == {"mean": 10.0, "median": 10.0, "p95": 10.0, "max": 10.0}


def test_metrics_of_a_chart_are_named_by_task() -> None:
    assert evaluation_metrics([outcome("rwww"), outcome("rrrr", task="vqa")], 4) == {
        "sums/avg": 0.25,
        "sums/pass@4": 1.0,
        "sums/majority": 0.25,
        "vqa/avg": 1.0,
        "vqa/pass@4": 1.0,
        "vqa/majority": 1.0,
    }
    assert evaluation_metrics([outcome("r")], 1) == {"sums/avg": 1.0}


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (2, [1, 2]), (10, [1, 2, 4, 8]), (16, [1, 2, 4, 8, 16])])
def test_powers_of_two(most: int, expected: list[int]) -> None:
    assert powers_of_two(most) == expected


def recorded(*scores: Score, **completion: Any) -> dict[str, Any]:
    prompt = Prompt(id="a", messages=[], task="sums")
    completions = [Completion(text="17", token_ids=np.zeros(3, np.int32), **completion) for _ in scores]
    group = Group(prompt=prompt, prompt_token_ids=np.zeros(1, np.int32), completions=completions)
    return transcript(Path(), "", group, scores, with_pictures=False)


def test_an_outcome_is_read_from_a_runs_record() -> None:
    failed = Score(reward=0.0, error="judge is silent", failed="judge")
    found = prompt_result(recorded(Score(reward=1.0), Score(reward=0.3), failed, finish_reason="length"))
    assert (found.prompt_id, found.task, found.num_truncated) == ("a", "sums", 3)
    assert (found.correct, found.answers, found.rewards) == ([True, False], ["17", "17"], [1.0, 0.3])
    assert (found.lengths, found.errors) == ([3, 3, 3], {"judge": 1})
    assert pass_rate(found) == {
        "prompt_id": "a",
        "task": "sums",
        "n": 2,
        "correct": 1,
        "pass_rate": 0.5,
        "mean_reward": 0.65,
        "mean_tokens": 3.0,
        "truncated": 3,
        "without_verdict": 1,
    }


def test_a_pass_rate_without_a_verdict_is_none_and_not_zero() -> None:
    row = pass_rate(outcome("", errors=2))
    assert (row["n"], row["pass_rate"], row["mean_reward"]) == (0, None, None)


def test_weights_that_add_up_to_almost_one_are_correct() -> None:
    reward = 0.7 + 0.2 + 0.1
    assert reward < 1.0
    assert prompt_result(recorded(Score(reward=reward))).correct == [True]


def test_a_part_decides_where_it_is_named() -> None:
    score = Score(reward=0.9, parts={"accuracy": 1.0, "length": -0.1})
    assert prompt_result(recorded(score)).correct == [False]
    assert prompt_result(recorded(score), CorrectnessRule(part="accuracy")).correct == [True]
    assert prompt_result(recorded(score), CorrectnessRule(at_least=0.5)).correct == [True]
    outside = Score(reward=0.0, parts={"gate": 0.0})  # a gate kept it from being looked at
    assert prompt_result(recorded(score, outside), CorrectnessRule(part="accuracy")).correct == [True, False]
    with pytest.raises(ValueError, match="'format' is not a part of the reward, which has: accuracy, length"):
        CorrectnessRule(part="format").require_part({"length", "accuracy"})
