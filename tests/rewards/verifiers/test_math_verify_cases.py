"""math_answer agrees with math-verify's own tests, but for what is listed with the reason why not.

The cases: math-verify 0.9.0's tests, MIT and Apache 2.0, Copyright (c) 2024 The HuggingFace Team; see math_verify_cases.LICENCE.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from rewards import math_answer
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group, Prompt

TABLE = Path(__file__).with_name("math_verify_cases.jsonl")
SOURCE, *CASES = map(json.loads, TABLE.read_text().splitlines())
DIFFERENT = [case for case in CASES if "why" in case]


def key(case: dict[str, Any]) -> str:
    return json.dumps([case["gold"], case["said"], case["right"]])


@pytest.fixture(scope="module")
def verdicts() -> dict[str, int | None]:
    """1 or 0 for each case, `None` for a reference that is an error; from a process that a case may hang, and not the suite."""
    groups = [
        Group(
            prompt=Prompt(id=str(number), messages=[], answer=case["gold"]),
            prompt_token_ids=None,
            completions=[Completion(text=case["said"])],
        )
        for number, case in enumerate(CASES)
    ]
    with RewardRunner(math_answer, timeout=20.0) as runner:
        scores = [score for [score] in runner.score(groups)]
    unread = [score.error for score in scores if score.error and "cannot read the answer" not in score.error]
    assert unread == []
    return {key(case): None if score.error else int(score.reward) for case, score in zip(CASES, scores, strict=True)}


@pytest.mark.slow
def test_it_agrees_with_the_published_verdicts_or_differs_as_listed(verdicts: dict[str, int | None]) -> None:
    expected = {key(case): case["here"] if "why" in case else case["right"] for case in CASES}
    surprises = {case: verdict for case, verdict in verdicts.items() if verdict != expected[case]}
    assert surprises == {}


def test_what_is_listed_as_different_is() -> None:
    assert [case for case in DIFFERENT if case["here"] == case["right"] or not case["why"]] == []
    assert (len(CASES), len(DIFFERENT)) == (265, 22)  # no case is lost, and no difference comes in unnoticed
    assert len(set(map(key, CASES))) == len(CASES)
