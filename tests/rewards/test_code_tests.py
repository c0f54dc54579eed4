"""Programs that solve a problem are rewarded, and programs that only seem to are not."""

import json
import logging
import time
from typing import Any

import cloudpickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.code_harness import close, same, wanted
from rewards.code_tests import code_tests
from rewards.program_tests import StdinTest, is_expected, program_in
from rewards.sandbox import why_not
from rollout import Completion, Prompt

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"programs cannot be isolated here: {why_not()}")

PATIENT = code_tests(seconds=20, total_seconds=60)
SHARE = code_tests(seconds=20, total_seconds=60, partial=True)
SUMS = [{"input": "3 4\n", "output": "7\n"}, {"input": "10 -2\n", "output": "8\n"}]
SUM = "print(sum(map(int, input().split())))"
ADD = "def add(a, b):\n    return a + b"
ADDS = ["assert add(3, 4) == 7", "assert add('a', 'b') == 'ab'"]


def fenced(program: str) -> str:
    return f"Here it is:\n\n```python\n{program}\n```\nIt works."


def score(tests: Any, text: str, verifier: Any = PATIENT, **columns: Any) -> float | Score:
    prompt = Prompt(id="code-7", messages=[], columns={"tests": tests, **columns})
    return verifier(prompt, Completion(text=text))


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


APPS = {"fn_name": "add", "inputs": [[3, 4], ["a", "b"]], "outputs": [[7], ["ab"]]}


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


ALWAYS_EQUAL = """
class Yes:
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
    def __bool__(self): return True
    def __len__(self): return 7
    def __sub__(self, other): return 0
    __rsub__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = lambda *_: True
    def __float__(self): return 7.0
    __index__ = __int__ = lambda self: 7
"""
HUNT = """
import gc, sys
def add(a, b):
    seen, todo = set(), [sys._getframe(i).f_locals for i in range(1, 4)] + gc.get_objects()
    for thing in todo:
        if isinstance(thing, (bytes, str)) and 'add' in str(thing) and '==' in str(thing) and 'assert' in str(thing)[:10]:
            return eval(str(thing).split('==')[1])
    return None
"""
CHEATS = {
    "nothing": "",
    "pass": "pass",
    "exit 0": "import sys\nsys.exit(0)",
    "exit 0 at once": "import os\nos._exit(0)",
    "exit 0 when called": "import os\ndef add(a, b): os._exit(0)",
    "sys.exit when called": "import sys\ndef add(a, b): sys.exit(0)",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return None",
    "says passed": "print('passed'); print('all tests passed')",
    "says passed when called": "import os\ndef add(a, b):\n    for fd in range(64):\n"
    "        try: os.write(fd, b'passed')\n        except OSError: pass\n    os._exit(0)",
    "says passed on every channel": "import os\nfor fd in range(64):\n    for _ in range(9):\n"
    '        try: os.write(fd, b\'{"value": {"tuple": [true, null]}}\\n\')\n        except OSError: pass',
    "answers requests itself": "import os, json\nfor fd in range(3, 64):\n    try:\n        while os.read(fd, 9999):\n"
    '            os.write(fd, b\'{"value": {"tuple": [{"object": 0}, null]}}\\n\')\n    except OSError: pass',
    "raises AssertionError": "def add(a, b): raise AssertionError",
    "raises SystemExit": "def add(a, b): raise SystemExit(0)",
    "raises a stop": "def add(a, b): raise StopIteration",
    "raises GeneratorExit": "def add(a, b): raise GeneratorExit",
    "equal to all": ALWAYS_EQUAL + "def add(a, b): return Yes()",
    "all of it": ALWAYS_EQUAL + "add = Yes()",
    "equal int": "class I(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\ndef add(a, b): return I(1)",
    "equal str": "class S(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\ndef add(a, b): return S('z')",
    "equal list": "class L(list):\n    __eq__ = lambda s, o: True\ndef add(a, b): return L()",
    "builtins patched": "import builtins\nfor n in 'all any len sum abs isinstance type eval exec zip min max set'.split():\n"
    "    setattr(builtins, n, lambda *a, **k: True)\ndef add(a, b): return 1",
    "builtins defined": "def all(*a): return True\nany = isinstance = len = abs = print = input = all\ndef add(a, b): return 1",
    "json patched": "import json\njson.loads = lambda *a, **k: 7\njson.dumps = lambda *a, **k: '7'\ndef add(a, b): return 1",
    "the harness patched": "import sys\nm = sys.modules['__main__']\nfor n in dir(m):\n    if n in ('same', 'check', 'pack'):"
    "\n        setattr(m, n, lambda *a, **k: True)\ndef add(a, b): return 1",
    "same and check defined": "def __same__(*a): return True\n__json__ = __is_one_of__ = check = __same__\ndef add(a, b): return 1",
    "stdout replaced": "import sys, io\nsys.stdout = io.StringIO('passed')\nsys.__stdout__ = sys.stdout\ndef add(a, b): return 1",
    "stdout closed": "import os\nos.close(1)\ndef add(a, b): return 1",
    "assertions compiled away": "import ast\nast.Assert = ast.Pass\ndef add(a, b): return 1",
    "traced": "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = lambda *a: print('passed')\ndef add(a, b): return 1",
    "looks for the tests": HUNT,
    "looks for files": "import glob\nfor f in glob.glob('/tmp/**', recursive=True) + glob.glob('/proc/self/fd/[03-9]'):\n    try:\n"
    "        t = open(f).read()\n    except (OSError, UnicodeDecodeError): continue\n"
    "    if '== 7' in t: add = lambda a, b: eval(t.split('==')[1])\nprint(7)\ndef add(a, b): return 1",
    "forks": "import os\nif os.fork(): os._exit(0)",
    "kills": "import os\nfor p in 1, -1, os.getppid():\n    try: os.kill(p, 9)\n    except OSError: pass\nos._exit(0)",
    "two answers": "print(7)\nprint(8)",
    "NaN": "def add(a, b): return float('nan')\nprint('nan')",
    "infinity": "def add(a, b): return float('inf')\nprint('inf')",
    "true": "def add(a, b): return True\nprint(True)",
    "text": "def add(a, b): return '7' if a == 3 else None\nprint('7 ' if input()[0] == '3' else '')",
    "deep": "x = []\nfor _ in range(10**5): x = [x]\ndef add(a, b): return x\nprint('[' * 10**5)",
    "endless recursion": "def add(a, b): return add(a, b)\nadd(1, 2)",
    "huge number": "def add(a, b): return 1 << 10**5\nprint('7' * 10**5)",
    "huge text": "def add(a, b): return '7' * 10**7\nprint('7' * 10**7)",
    "right, then crashes": "print(7 if input()[0] == '3' else 8)\nraise ValueError",
    "right, then exits with 1": "print(7 if input()[0] == '3' else 8)\nexit(1)",
    "reads beyond the end": "while True: input()",
    "an alarm": "import signal, time\nsignal.alarm(1)\nsignal.raise_signal(9)\nraise SystemExit(0)",
    "null byte": "print(7)\n\0",
    "no Python": "Der Hund bellt.",
    "half a program": "def add(a, b):\n    return (a +",
    "lone surrogate": "print(7)  # \ud800",
    "long": "x = 1\n" * 1_000_000,
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_earn_nothing(name: str) -> None:
    assert score(ADDS[0], fenced(CHEATS[name])) == 0.0
    assert score(SUMS, fenced(CHEATS[name])) == 0.0


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert abs(f(1) - 5) < 0.1", ALWAYS_EQUAL + "def f(x): return Yes()"),
        ("assert f(1) < 5", ALWAYS_EQUAL + "def f(x): return Yes()"),
        ("assert 5 in f(1)", ALWAYS_EQUAL + "def f(x): return Yes()"),
        ("assert math.isclose(f(1), 5)", ALWAYS_EQUAL + "math = Yes()\ndef f(x): return 1"),
        ("assert math.isclose(f(1), 7)", ALWAYS_EQUAL + "def f(x): return Yes()"),
        ("assert f(1) == f2(2)", ALWAYS_EQUAL + "def f(x): return Yes()\nf2 = f"),
        ("assert set(f(1)) == {5}", "def f(x): return [1]\ndef set(x): return 5"),
        ("assert [] == f(1) or len(f(1)) == 5", "def len(x): return 5\ndef f(x): return [1]"),
        ("x = [3, 1]\nassert f(x) == sorted(x)", "def f(x):\n    x.clear()\n    return []"),
        ("x = [3, 1]\nassert f(x) == x", "def f(x):\n    x.clear()\n    x.append(5)\n    return [5]"),
        ("assert len([]) == 0", "pass"),
        ("try:\n    f(1)\nexcept:\n    pass\nassert f(2) == 1", "import os\ndef f(x): os._exit(0)"),
        ("try:\n    f(1)\n    assert False\nexcept Exception:\n    pass", "import os\ndef f(x): os._exit(0)"),
    ],
)
def test_cheats_made_for_one_assertion_earn_nothing(test: str, program: str) -> None:
    assert score(test, fenced(program)) == 0.0


@pytest.mark.parametrize("tests", [SUMS, ADDS, APPS])
@pytest.mark.parametrize(
    "program",
    ["while True: pass", "import time\ntime.sleep(99)", "def add(a, b):\n    while True: pass\ninput()\nadd(1, 2)"],
)
def test_what_hangs_is_given_up_and_the_next_program_is_rewarded(tests: Any, program: str) -> None:
    start = time.monotonic()
    assert score(tests, fenced(program), code_tests(seconds=0.5)) == 0.0
    assert score(tests, fenced(program), code_tests(seconds=9, total_seconds=0.5, partial=True)) == 0.0
    assert time.monotonic() - start < 6
    assert score(tests, fenced(SUM if tests is SUMS else ADD)) == 1.0


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("print(1)", "print(1)"),
        ("```\nprint(1)\n```", "\nprint(1)\n"),
        ("```python\nprint(1)\n```\nNo:\n```py\nprint(2)\n```", "\nprint(2)\n"),
        ("```python\nprint(1)\n```python\nprint(2)\n```", "\nprint(2)\n"),
        ("<think>\n```python\nprint(1)\n```\n</think>\n```python\nprint(2)\n```", "\nprint(2)\n"),
        ("<think>\n```python\nprint(1)\n```", ""),
        ("```python\nprint(1)", "\nprint(1)"),
        ("```python\nprint('```')\n```", "\nprint('```')\n"),
        ("```python\nprint(1)\n```\n```\n```", ""),
        ("", ""),
        (" \n", ""),
        ("x" * 100_001, ""),
        ("\ud800", ""),
    ],
)
def test_the_program_is_the_last_block(text: str, program: str) -> None:
    assert program_in(text).strip(b" ") == program.encode()


@pytest.mark.parametrize(
    "text", ["```\n" * 1_250_000, "```" + " " * 5_000_000, "\n" * 5_000_000, "`" * 5_000_000, "<think>" * 700_000]
)
def test_long_responses_are_read_quickly(text: str) -> None:
    start = time.monotonic()
    assert score(SUMS, text) == 0.0
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("output", "expected", "reward"),
    [
        ("7", "7\n", True),
        ("7 \n\n", "7", True),
        ("1  2\n3", "1 2\n3\n", True),
        ("1 2 3", "1 2\n3", False),
        ("1\n\n2", "1\n2", False),
        ("yes", "YES", False),
        ("0.6666666666666666", "0.666667", True),
        ("2", "2.0", True),
        ("1e-3", "0.001", True),
        ("0.67", "0.666667", False),
        ("7.0", "7", False),
        ("1000001", "1000000", False),
        ("nan", "0.5", False),
        ("inf", "1e999", False),
        ("1_0.0", "10.0", False),
        ("１.5", "1.5", False),
        ("7\x00", "7", False),
        ("", "7", False),
        ("77", "7", False),
    ],
)
def test_outputs_are_compared_word_by_word(output: str, expected: str, reward: bool) -> None:
    assert is_expected(output, StdinTest(input=b"", output=expected, tolerance=1e-6)) is reward


def test_without_a_tolerance_numbers_are_text() -> None:
    assert not is_expected("2", StdinTest(input=b"", output="2.0", tolerance=0))


@pytest.mark.parametrize(
    ("value", "expected", "reward"),
    [
        ((1, 2), [1, 2], True),
        ({1: "a"}, {"1": "a"}, True),
        (0.1 + 0.2, 0.3, True),
        (1, 1.0, True),
        (None, None, True),
        (1.0000001, 1, False),
        (True, 1, False),
        (1, True, False),
        ([1], [1, 2], False),
        ({1}, [1], False),
        ("1", 1, False),
        (float("nan"), 1.0, False),
        (float("inf"), 1.0, False),
        (None, [], False),
    ],
)
def test_values_are_compared_as_json_has_them(value: Any, expected: Any, reward: bool) -> None:
    assert same(value, expected, 1e-6) is reward


def test_a_tolerance_is_relative_for_large_numbers() -> None:
    assert close(1_000_000.5, 1_000_000.0, 1e-6) and not close(1_000_001.5, 1_000_000.0, 1e-6)
    assert not close(10**400, 1.0, 1e-6)


def test_what_is_taken_from_the_program() -> None:
    import ast

    def names(source: str) -> list[str]:
        return wanted(ast.parse(source))

    assert names("assert f(x) == set([1])") == ["f", "x"]
    assert names("import math as m\nfor x in [1]:\n    assert m.floor(g(x)) == x") == ["g"]
    assert names("assert string.capwords(queue(1))") == ["queue"]
    assert names("assert sum(1, 2) == 3") == ["sum"]
    assert names("assert abs(sum(1, 2)) == 3") == []
    assert names("def check(candidate):\n    assert candidate(1)") == []


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
    from rewards import sandbox

    sandbox._try.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    verdict = score(SUMS, fenced(SUM))
    assert isinstance(verdict, Score) and verdict.error is not None
    assert "bubblewrap is missing" in verdict.error and "code_tests(unsandboxed=True)" in verdict.error
    assert score(SUMS, fenced(SUM), code_tests(unsandboxed=True, seconds=20, total_seconds=40)) == 1.0


def test_without_a_sandbox_it_judges_alike_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    from rewards.code_tests import _warn

    _warn.cache_clear()
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


@given(st.text(max_size=50))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score([{"input": "", "output": "forty-two"}], text) == 0.0
