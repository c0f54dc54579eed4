"""Answers as models write them, after public reports about other verifiers, with the verdict of a careful human.

`public_cases.jsonl` has one a line: the verifier as an expression, the reference with its columns, the question and the response.
`right` is the reward, `error` for a reference that must be refused, or a bound such as `<0.5`.
"""

from __future__ import annotations

import json
import operator
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards.workers.call import call_verifier
from rollout import Completion, Prompt

CASES = Path(__file__).with_name("public_cases.jsonl")
NAMES = {name: getattr(rewards, name) for name in rewards.__all__}
BOUNDS = {"<": operator.lt, ">=": operator.ge}


@cache
def cases() -> Mapping[str, list[dict[str, Any]]]:
    """Returns the cases by the name of their verifier."""
    found = defaultdict(list)
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        found[case["verifier"].split("(")[0]].append(case)
    return found


def wrong(case: Mapping[str, Any]) -> str | None:
    """Returns a description of a case whose verdict is not the right one; `None` for all others."""
    messages = [{"role": "user", "content": case.get("question") or "What do you see?"}]
    prompt = Prompt(id="p-7", messages=messages, answer=case.get("answer"), columns=case.get("columns") or {})
    completion = Completion(text=case["completion"], thinking=bool(case.get("thinking")))
    score = call_verifier(eval(case["verifier"], dict(NAMES)), prompt, completion)
    right = case["right"]
    if right == "error":
        is_right = score.error is not None
    elif isinstance(right, str):
        sign = next(sign for sign in BOUNDS if right.startswith(sign))
        is_right = score.error is None and BOUNDS[sign](score.reward, float(right.removeprefix(sign)))
    else:
        is_right = score.error is None and score.reward == pytest.approx(right)
    if is_right:
        return None
    told = f"{case['verifier']}, {case['kind']}: {case['completion']!r:.300} for {case.get('answer')!r:.200}"
    return f"{told} must earn {right}, and earned {score.error or score.reward}"


@pytest.mark.slow
@pytest.mark.parametrize("verifier", sorted(cases()))
def test_every_verdict_is_that_of_a_careful_human(verifier: str) -> None:
    found = [told for case in cases()[verifier] if (told := wrong(case))]
    assert not found, "\n".join(found)


def test_there_are_cases_of_every_kind_of_verdict() -> None:
    every = [case for of_one in cases().values() for case in of_one]
    rights = [case["right"] for case in every]
    assert len(every) > 900 and len(cases()) >= 17
    assert min(rights.count(right) for right in (0, 1)) > 300 and rights.count("error") > 5


@pytest.mark.parametrize(
    ("right", "told"),
    [
        (0, "must earn 0, and earned 1.0"),
        ("error", "must earn error, and earned 1.0"),
        ("<0.9", "must earn <0.9, and earned 1.0"),
        (0.5, "must earn 0.5, and earned 1.0"),
        (1, None),
        (">=0.5", None),
    ],
)
def test_a_wrong_verdict_is_told(right: object, told: str | None) -> None:
    case = {"verifier": "count(tolerance=1)", "answer": 3, "completion": "three", "kind": "a word", "right": right}
    start = "count(tolerance=1), a word: 'three' for 3 "
    assert wrong(case) == (told and start + told)
    refused = {**case, "answer": "no number", "right": 1}
    assert "earned count cannot read the answer 'no number'" in str(wrong(refused))
