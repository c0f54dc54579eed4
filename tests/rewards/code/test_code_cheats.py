"""Programs that only seem to solve a problem, hang, or are none, earn nothing."""

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.code.verifier import code_tests
from tests.rewards.programs import ADD, ADDS, APPS, SUM, SUMS, fenced, isolated_only, score

pytestmark = isolated_only

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


@pytest.mark.slow
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


@pytest.mark.slow
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
    "text", ["```\n" * 1_250_000, "```" + " " * 5_000_000, "\n" * 5_000_000, "`" * 5_000_000, "<think>" * 700_000]
)
def test_long_responses_are_read_quickly(text: str) -> None:
    start = time.process_time()
    assert score(SUMS, text) == 0.0
    assert time.process_time() - start < 1


@given(st.text(max_size=50))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score([{"input": "", "output": "forty-two"}], text) == 0.0
