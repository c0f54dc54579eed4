"""Programs that solve a problem are rewarded, whatever form its tests have; tests that cannot be read are an error."""

import json
import logging
import sys
from typing import Any

import cloudpickle
import pytest

from rewards import Score
from rewards.code.verifier import code_tests
from rollout import Completion, Prompt
from tests.rewards.programs import ADD, ADDS, APPS, PATIENT, SUM, SUMS, fenced, isolated_only, score

pytestmark = isolated_only

SHARE = code_tests(seconds=20, total_seconds=60, partial=True)


@pytest.mark.parametrize(
    "tests",
    [
        SUMS,
        json.dumps(SUMS),
        {"inputs": ["3 4\n", "10 -2\n"], "outputs": ["7\n", "8\n"]},
        json.dumps({"inputs": ["3 4\n", "10 -2\n"], "outputs": ["7\n", "8\n"]}),
        [{"input": ["3 4"], "output": ["7"]}, {"input": ["10 -2"], "output": 8}],
    ],
)
def test_a_program_that_reads_and_writes(tests: Any) -> None:
    assert score(tests, fenced(SUM)) == 1.0
    assert score(tests, fenced("print(7)")) == 0.0
    assert score(tests, fenced("print(7)"), SHARE) == 0.5


@pytest.mark.parametrize(
    ("tests", "columns"),
    [
        (APPS, {}),
        (json.dumps(APPS), {}),
        (APPS | {"outputs": [7, "ab"]}, {}),
        ([{"input": "3\n4", "output": "7"}, {"input": '"a"\n"b"', "output": '"ab"'}], {"fn_name": "add"}),
        (
            [{"input": [3, 4], "output": 7, "fn_name": "add"}, {"input": ["a", "b"], "output": "ab", "fn_name": "add"}],
            {},
        ),
        (ADDS, {}),
        (
            "def check(candidate):\n    assert candidate(3, 4) == 7\n    assert candidate('a', 'b') == 'ab'",
            {"entry_point": "add"},
        ),
    ],
)
def test_a_function(tests: Any, columns: dict[str, str]) -> None:
    assert score(tests, fenced(ADD), **columns) == 1.0
    assert score(tests, fenced("class Solution:\n    def add(self, a, b): return a + b"), **columns) == 1.0
    assert score(tests, fenced("def add(a, b): return 7"), **columns) == 0.0
    assert score(tests, fenced("def sub(a, b): return 7"), **columns) == 0.0


@pytest.mark.parametrize("name", ["value", "any", "same", "tests", "check", "queue", "json", "sum"])
def test_a_function_may_have_any_name(name: str) -> None:
    assert score([{"input": [2], "output": 4}], fenced(f"def {name}(x): return x * x"), fn_name=name) == 1.0
    assert score([{"input": [3], "output": 4}], fenced(f"def {name}(x): return x * x"), fn_name=name) == 0.0


def test_time_that_runs_out_before_a_program_is_begun_is_a_zero_and_no_error() -> None:
    for tests, program in ((SUMS, SUM), (ADDS, ADD)):
        assert score(tests, fenced(program), code_tests(total_seconds=0.001)) == 0.0


def test_tests_may_stand_in_the_answer() -> None:
    assert PATIENT(Prompt(id="p", messages=[], answer=SUMS), Completion(text=SUM)) == 1.0


def test_options_may_be_left_out() -> None:
    assert score(SUMS, SUM, code_tests) == 1.0
    assert (
        cloudpickle.loads(cloudpickle.dumps(PATIENT))(Prompt(id="p", messages=[], answer=SUMS), Completion(text=SUM))
        == 1.0
    )


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert f(2) == (1, 'a', None)", "def f(x): return (1, 'a', None)"),
        ("assert f('ab') == {'a': 1, 'b': 1}", "from collections import Counter as f"),
        ("assert set(f([1, 1])) == {1}", "def f(x): return set(x)"),
        ("assert f(1j) == 2j", "def f(x): return 2 * x"),
        ("assert f() == float('inf') and f() != -1", "def f(): return float('inf')"),
        ("assert math.isclose(f(), 3.14159, abs_tol=1e-4)", "import math\ndef f(): return math.pi"),
        ("assert list(f(3)) == [0, 1, 2]", "def f(n):\n    yield from range(n)"),
        ("x = [3, 1]\nf(x)\nassert x == [1, 3]", "def f(x): x.sort()"),
        ("x = {3: 1}\nf(x)\nassert x == {}", "def f(x): x.clear()"),
        ("s = Stack()\ns.push(3)\nassert s.pop() == 3 and len(s) == 0", "class Stack(list):\n    push = list.append"),
        (
            "p = Point(1)\np.x += 1\nassert p.x == 2 and str(p) == 'p'",
            "class Point:\n    def __init__(self, x): self.x = x\n    def __str__(self): return 'p'",
        ),
        (
            "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'no' in str(e)",
            "def f(x): raise ValueError('no')",
        ),
        ("assert sum(10, 15) == 6", "def sum(a, b): return 6"),
        ("assert N == 42", "N = 42"),
        ("assert f(x=3) == 3", "def f(*, x): return x"),
        ("assert f(g(1)) == 1", "def g(x): return lambda: x\ndef f(h): return h()"),
        ("assert f(2000) % 10 == 0 and len(str(f(2000))) > 5000", "import math\nf = math.factorial"),
        ("assert f('\\ud800') == '\\ud800'", "def f(x): return x"),
        ("assert f(b'a') == b'a'", "def f(x): return x"),
        ("assert f() == 1", "print('passed')\ndef f(): print('passed'); return 1"),
        (
            "assert f() == 1",
            "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n"
            "    x: int\ndef f(): return A(1).x",
        ),
    ],
)
def test_what_assertions_may_ask_for(test: str, program: str) -> None:
    assert score(test, fenced(program)) == 1.0


@pytest.mark.parametrize(
    "program",
    [
        "print(2 ** 20_000)",
        "n = int(str(2 ** 20_000))\nprint(n)",
        "x = deque([2 ** 20_000])\nprint(x.pop())",
        "def f() -> Optional[int]: return reduce(mul, [2] * 20_000)\nprint(f())",
        "if __name__ == '__main__':\n    print(math.prod(itertools.repeat(2, 20_000)))",
    ],
)
def test_long_numbers_are_printed_and_the_usual_modules_need_no_import(program: str) -> None:
    sys.set_int_max_str_digits(0)
    expected = [{"input": "", "output": str(2**20_000)}]
    sys.set_int_max_str_digits(4300)
    assert score(expected, fenced(program)) == 1.0


def test_what_needs_no_import_is_not_taken_for_the_programs_own() -> None:
    tests = [{"input": [[1, 2]], "output": 2, "fn_name": "count"}]
    method = "class Solution:\n    def count(self, x):\n        return len(x) + x.count(9)"
    assert score(tests, fenced(method)) == 1.0
    assert score("assert add(3, 4) == 7", fenced("s = set()\ns.add(3)")) == 0.0
    assert score("assert f(3) == 4", fenced("def deepcopy(x): return 4\ndef f(x): return deepcopy(x)")) == 1.0


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        (None, "there are none"),
        ([], "there are none"),
        (7, "there are none"),
        ("", "nothing is asserted in ''"),
        ("[{", "JSONDecodeError"),
        ("assert f(", "SyntaxError"),
        ("x = f(1)", "nothing is asserted in 'x = f(1)'"),
        ("assert True", "nothing is taken from the program in 'assert True'"),
        ("def check(candidate):\n    assert candidate(1) == 1", "add a column 'entry_point'"),
        ([{"input": "3"}], "no test has the form {'input': '3'}"),
        ([[1, 2]], "no test has the form [1, 2]"),
        ({"input": [1]}, "there are no 'inputs' and 'outputs' among ['input']"),
        ({"inputs": ["1"], "outputs": []}, "zip() argument 2 is shorter"),
        ([{"input": "1", "output": None}], "an input or output is None"),
        ([{"input": "1", "output": " \n"}], "no output is expected"),
        ([{"input": "\ud800", "output": "1"}], "UnicodeEncodeError"),
        ({"fn_name": "a b", "inputs": [[1]], "outputs": [1]}, "fn_name must be the name of a function, got 'a b'"),
        ({"fn_name": "f", "inputs": ["x"], "outputs": ["1"]}, "JSONDecodeError"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [{1, 2}]}, "not JSON serializable"),
        ("assert " + "(" * 10_000, "too many nested parentheses"),
    ],
)
def test_tests_that_cannot_be_read_are_an_error_and_not_a_zero(tests: Any, told: str) -> None:
    verdict = score(tests, fenced(ADD))
    assert isinstance(verdict, Score) and verdict.reward == 0.0 and verdict.error is not None
    assert (
        verdict.error.startswith("code_tests has no verdict for prompt 'code-7': its tests cannot be read: ")
        and told in verdict.error
    )


def test_a_machine_without_bubblewrap_is_an_error_and_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards.code import sandbox

    sandbox._try.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    verdict = score(SUMS, fenced(SUM))
    assert isinstance(verdict, Score) and verdict.error is not None
    assert "bubblewrap is missing" in verdict.error and "code_tests(unsandboxed=True)" in verdict.error
    assert score(SUMS, fenced(SUM), code_tests(unsandboxed=True, seconds=20, total_seconds=40)) == 1.0


def test_without_a_sandbox_it_judges_alike_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    from rewards.code.verifier import _warn_unsandboxed

    _warn_unsandboxed.cache_clear()
    free = code_tests(unsandboxed=True, seconds=20, total_seconds=60)
    with caplog.at_level(logging.WARNING):
        assert [score(SUMS, SUM, free), score(ADDS, ADD, free), score(SUMS, "print(7)", free)] == [1.0, 1.0, 0.0]
    assert [record.message for record in caplog.records] == [
        "code_tests(unsandboxed=True): programs of the policy run with all rights of this user"
    ]


@pytest.mark.parametrize(
    "option",
    [
        {"seconds": 0},
        {"seconds": float("nan")},
        {"total_seconds": -1},
        {"memory_mib": 0},
        {"tolerance": -1},
        {"tolerance": 2},
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    [(name, value)] = option.items()
    with pytest.raises(ValueError, match=f"{name} of code_tests must be from .*, got {value}"):
        code_tests(**option)
