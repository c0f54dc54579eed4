"""Programs, the tests that they have to pass, and what `code_tests` says of them."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import Score
from rewards.code.sandbox import unavailable_reason
from rewards.code.verifier import code_tests
from rollout import Completion, Prompt

isolated_only = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"programs cannot be isolated here: {unavailable_reason()}"
)

PATIENT = code_tests(seconds=20, total_seconds=60)
SUMS = [{"input": "3 4\n", "output": "7\n"}, {"input": "10 -2\n", "output": "8\n"}]
SUM = "print(sum(map(int, input().split())))"
ADD = "def add(a, b):\n    return a + b"
ADDS = ["assert add(3, 4) == 7", "assert add('a', 'b') == 'ab'"]
APPS = {"fn_name": "add", "inputs": [[3, 4], ["a", "b"]], "outputs": [[7], ["ab"]]}


def fenced(program: str) -> str:
    return f"Here it is:\n\n```python\n{program}\n```\nIt works."


def score(tests: Any, text: str, verifier: Any = PATIENT, **columns: Any) -> float | Score:
    prompt = Prompt(id="code-7", messages=[], columns={"tests": tests, **columns})
    return verifier(prompt, Completion(text=text))
