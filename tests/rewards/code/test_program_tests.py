"""How a program is found in a response, and what it writes or returns is compared with what is expected; nothing runs here."""

import ast
from typing import Any

import pytest

from rewards.code.harness import close, same, wanted
from rewards.code.tests import StdinTest, is_expected, program_in


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("print(1)", "print(1)"),
        ("```\nprint(1)\n```", "\nprint(1)\n"),
        ("```python\nprint(1)\n```\nNo:\n```py\nprint(2)\n```", "\nprint(2)\n"),
        ("```python\nprint(1)\n```python\nprint(2)\n```", "\nprint(2)\n"),
        ("<think>\n```python\nprint(1)\n```\n</think>\n```python\nprint(2)\n```", "\nprint(2)\n"),
        ("```python\nprint(1)", "\nprint(1)"),
        ("```python\nprint('```')\n```", "\nprint('```')\n"),
        ("```python\nprint(1)\n```\n```\n```", ""),
        ("```python\nprint(1)\n``` This prints 1.", "\nprint(1)\n"),
        ("```python\nprint(1)\n```\nOutput:\n```\n1\n```", "\nprint(1)\n"),
        ("```python\nprint(1)\n```\nRun it:\n```bash\npython a.py\n```", "\nprint(1)\n"),
        ("```python\nprint(1)\n\nThis program prints the number one.", "\nprint(1)"),
        ("print(1)\n\nThis program prints the number one.\nIt is short and right.", "print(1)"),
        ("print(1)\nThis prints the number one.\n- It is short and **right**.", "print(1)"),
        ('x = """\nHere is a sentence.\n"""', 'x = """\nHere is a sentence.\n"""'),
        ("Here is the program:\n\nprint(1)\n\nprint(2)", "print(1)\n\nprint(2)"),
        ("1. So:\n   ```python\n   if 1:\n       print(1)\n   ```", "\nif 1:\n    print(1)\n"),
        ("```python\ndef f(): return 1\n```\nTry it:\n```python\nprint(f())\n```", "\ndef f(): return 1\n"),
        ("```python\ndef f(): return 1\n```\n```python\nassert f() == 1\n```", "\ndef f(): return 1\n"),
        (
            "```python\ndef f(x): return x\n```\n```python\nprint(f(input()))\n```",
            "\ndef f(x): return x\n\n\nprint(f(input()))\n",
        ),
        ("", ""),
        (" \n", ""),
        ("x" * 100_001, ""),
        ("\ud800", ""),
    ],
)
def test_the_program_is_the_last_block(text: str, program: str) -> None:
    assert program_in(text).strip(b" ") == program.encode()


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
        ("0.0", "3.34e-27", False),
        ("3.35e-27", "3.34e-27", False),
        ("3.34000000001e-27", "3.34e-27", True),
        ("0.00", "0.0000004", False),
        ("0.00012345", "0.000123", True),  # with more digits
        ("0.00012445", "0.000123", False),
        ("1e-9", "0.0", True),
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
        (0, 3.34e-27, False),
        ([0.0, 1.0], [3.34e-27, 1.0], False),
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
    def names(source: str) -> list[str]:
        return wanted(ast.parse(source))

    assert names("assert f(x) == set([1])") == ["f", "x"]
    assert names("import math as m\nfor x in [1]:\n    assert m.floor(g(x)) == x") == ["g"]
    assert names("assert string.capwords(queue(1))") == ["queue"]
    assert names("assert sum(1, 2) == 3") == ["sum"]
    assert names("assert abs(sum(1, 2)) == 3") == []
    assert names("def check(candidate):\n    assert candidate(1)") == []
