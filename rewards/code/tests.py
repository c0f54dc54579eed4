"""Tests of a program: read from a dataset's row, and each run in a sandbox of its own."""

from __future__ import annotations

import ast
import inspect
import json
import keyword
import re
import reprlib
import socket
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from rewards.code import harness as code_harness
from rewards.code.harness import close, wanted
from rewards.code.sandbox import Limits, Running, memory_file, run, start_program
from rewards.text.patterns import Pattern
from rollout.types import Prompt

LONGEST_PROGRAM = 100_000  # characters; the longest that solve a problem have some thousands

_FENCE = Pattern(r"^([ \t]*)```([^\n]*)$", re.MULTILINE)
_LANGUAGE = Pattern(r"\s*[\w+#.{}-]{1,20}\s*")
_PYTHON = Pattern(r"\s*(?:py|python)[\d.]{0,6}\s*", re.IGNORECASE)
_DEFINED = Pattern(r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w{1,80})", re.MULTILINE)
_READS = Pattern(r"\binput\b|\bstdin\b|\bopen\b")
# A line of prose: a capital letter and three words or more, up to a full stop or colon.
_PROSE = Pattern(r"(?:[-*•] +|\d{1,3}\. +)?\*{0,2}[A-Z][\w'’*]*,?(?: [\w'’\"`(),;:/*.-]+){2,200}(?<=[.:!?*])")
_DECIMAL = Pattern(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]{1,3})?")
_NUMBER = Pattern(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinTest:
    """A text for standard input, and the expected text on standard output."""

    input: bytes
    output: str
    tolerance: float
    """Absolute and relative tolerance of decimal numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertTest:
    """Python code with assertions on the names that a program defines."""

    source: bytes


def results(
    tests: Sequence[StdinTest | AssertTest], program: bytes, limits: Limits, total_seconds: float, isolated: bool
) -> Iterator[bool]:
    """Yields for each test whether the program passes it; runs a test when its result is requested."""
    deadline = time.monotonic() + total_seconds
    for test in tests:
        left = min(limits.seconds, deadline - time.monotonic())
        yield bool(program) and left > 0 and _passes(test, program, replace(limits, seconds=left), isolated)


def program_in(text: str) -> bytes:
    """Returns the program in a response without thoughts; `b""` if there is none, or one that is too long or cannot be encoded.

    It is the last fenced block; where some are marked as Python, the last of these. A block that only tries functions of the one
    before it is none, and one that reads an input for them continues it. Without a fence it is the text without sentences around.
    """
    if len(text) > 2 * LONGEST_PROGRAM:
        return b""
    blocks = _blocks(text)
    program = _last_program(blocks) if blocks else _without_sentences(text)
    if not blocks and _is_prose(program):
        return b""
    try:
        return program.encode() if program.strip() and len(program) <= LONGEST_PROGRAM else b""
    except UnicodeEncodeError:
        return b""


def _blocks(text: str) -> list[tuple[str, str]]:
    """Returns language and content of the fenced blocks; the last one may be cut off."""
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None or (fence[2].strip() and _LANGUAGE.fullmatch(fence[2])):
            opened = fence
        else:  # perhaps with words behind it
            blocks.append(_block(opened, text[opened.end() : fence.start()]))
            opened = None
    if opened is not None:  # perhaps only the end of the block is missing
        blocks.append(_block(opened, _without_sentences(text[opened.end() :], behind_only=True)))
    return blocks


def _block(fence: re.Match[str], content: str) -> tuple[str, str]:
    return fence[2], textwrap.dedent(content) if fence[1] else content


def _last_program(blocks: list[tuple[str, str]]) -> str:
    if not blocks[-1][1].strip():
        return ""
    programs = [content for language, content in blocks if _PYTHON.fullmatch(language)] or [blocks[-1][1]]
    last = programs[-1]
    if len(programs) > 1 and not _DEFINED.search(last):
        names = _DEFINED.findall(programs[-2])
        if any(re.search(rf"\b{name}\b", last) for name in names[:100]):
            return f"{programs[-2]}\n{last}" if _READS.search(last) else programs[-2]
    return last


def _without_sentences(text: str, *, behind_only: bool = False) -> str:
    """Returns a text without the sentences at its end and, by default, at its beginning, one or several a line."""
    lines = text.split("\n")
    last, first = len(lines), 0
    while last > 1 and _is_prose(lines[last - 1]):
        last -= 1
    while not behind_only and first < last - 1 and _is_prose(lines[first]):
        first += 1
    return "\n".join(lines[first:last])


def _is_prose(line: str) -> bool:
    return not line.strip() or _PROSE.fullmatch(line[:2000].rstrip()) is not None


def _passes(test: StdinTest | AssertTest, program: bytes, limits: Limits, isolated: bool) -> bool:
    if isinstance(test, AssertTest):
        return _holds(test, program, limits, isolated)
    result = run(_with_usual_names(program), stdin=test.input, limits=limits, isolated=isolated)
    if result.returncode != 0 or result.exceeded is not None:
        return False
    return is_expected(result.stdout.decode(errors="replace"), test)


def _with_usual_names(program: bytes) -> bytes:
    """Returns a program that runs another as `__main__`, see `rewards.code.harness.execute`."""
    return (
        _executor()
        + f"""
import sys, types
sys.modules["__main__"] = types.ModuleType("__main__")
execute({program!r}, sys.modules["__main__"].__dict__)
""".encode()
    )


def _holds(test: AssertTest, program: bytes, limits: Limits, isolated: bool) -> bool:
    """Runs assertions and the program in two connected processes, see `rewards.code.harness`."""
    with ExitStack() as stack:
        program_fd, test_fd, no_input = (stack.enter_context(memory_file(text)) for text in (program, test.source, b""))
        test_end, program_end = (stack.enter_context(end) for end in socket.socketpair())

        def start(role: str, channel: int, source_fd: int, stdin_fd: int | None) -> Running:
            fds = (channel, source_fd)
            argv = (role, *map(str, fds))
            return stack.enter_context(
                start_program(_harness(), *argv, limits=limits, isolated=isolated, stdin_fd=stdin_fd, fds=fds)
            )

        start("answer", program_end.fileno(), program_fd, None)
        program_end.close()  # so that the tests get an end of file when the program is gone
        return start("check", test_end.fileno(), test_fd, no_input).result(limits).stdout == b"passed"


def is_expected(output: str, test: StdinTest) -> bool:
    """Compares line by line and word by word; where a decimal number is expected, by value."""
    got, expected = ([line.split() for line in text.strip().split("\n")] for text in (output, test.output))
    if [len(words) for words in got] != [len(words) for words in expected]:
        return False
    pairs = zip(chain.from_iterable(got), chain.from_iterable(expected), strict=True)
    return all(word == target or _is_close(word, target, test.tolerance) for word, target in pairs)


def _is_close(word: str, expected: str, tolerance: float) -> bool:
    if not tolerance or len(word) > 100 or not _DECIMAL.fullmatch(expected) or not _NUMBER.fullmatch(word):
        return False
    value, target = float(word), float(expected)
    return close(value, target, tolerance) or _is_rounded(value, expected, tolerance)


def _is_rounded(value: float, expected: str, tolerance: float) -> bool:
    """Returns whether a number near 0 is the expected one with more digits: 0.0001234 for `0.000123`."""
    digits, _, exponent = expected.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return value != 0 and abs(value - float(expected)) <= min(0.5 * unit, tolerance)


def read_tests(prompt: Prompt, tolerance: float) -> list[StdinTest | AssertTest]:
    """Returns a prompt's tests, at least one.

    Raises:
        ValueError, TypeError, SyntaxError: They have none of the forms in the docstring of `code_tests`.
    """
    given = prompt.columns.get("tests", prompt.answer)
    if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):
        given = json.loads(given)
    function = prompt.columns.get("fn_name")
    rows: list[Any] = []
    if isinstance(given, Mapping):
        rows, function = _rows(given), given.get("fn_name", function)
    elif isinstance(given, Iterable):
        rows = [given] if isinstance(given, str) else list(given)
    tests: list[StdinTest | AssertTest] = []
    for row in rows:
        if isinstance(row, str):
            tests.append(_assertions(row, prompt.columns.get("entry_point")))
        elif not isinstance(row, Mapping) or not {"input", "output"} <= row.keys():
            raise ValueError(f"no test has the form {reprlib.repr(row)}")
        elif called := row.get("fn_name", function):
            tests.append(_call(called, row["input"], row["output"], row.get("or"), tolerance))
        else:
            read, written = _text(row["input"]).encode(), _text(row["output"])
            tests.append(StdinTest(input=read, output=written, tolerance=tolerance))
    if not tests:
        raise ValueError("there are none")
    if not any(isinstance(test, AssertTest) or test.output.strip() for test in tests):
        raise ValueError("no output is expected")
    return tests


def _rows(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Splits a list of inputs and a list of outputs into one row for each test."""
    if not {"inputs", "outputs"} <= given.keys():
        raise ValueError(f"there are no 'inputs' and 'outputs' among {reprlib.repr(list(given))}")
    inputs, outputs = list(given["inputs"]), list(given["outputs"])
    rows = [{"input": entry, "output": output} for entry, output in zip(inputs, outputs, strict=True)]
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        rows = [row | {"or": row["output"][0]} for row in rows]
    return rows


def _text(value: Any) -> str:
    """Returns an input or output as one text; a list holds its lines."""
    if value is None:
        raise ValueError("an input or output is None")
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _call(function: str, arguments: Any, expected: Any, other: Any, tolerance: float) -> AssertTest:
    """Returns the assertion that a function returns the expected value, or the other one if it is not `None`."""
    if not isinstance(function, str) or not function.isidentifier() or keyword.iskeyword(function):
        raise ValueError(f"fn_name must be the name of a function, got {function!r}")
    if isinstance(arguments, str):
        arguments = [json.loads(line) for line in arguments.splitlines() if line.strip()]
        expected = json.loads(expected)
    accepted = [expected] if other is None else [expected, other]
    call = f"{function}(*__json__({json.dumps(list(arguments))!r}))"
    return AssertTest(source=f"assert __is_one_of__({call}, __json__({json.dumps(accepted)!r}), {tolerance})".encode())


def _assertions(source: str, entry_point: Any) -> AssertTest:
    """Returns assertions as they are run; raises if they cannot fail."""
    tree = ast.parse(source)
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if "check" in defined and entry_point is not None:
        source += f"\ncheck({entry_point})"
        tree = ast.parse(source)
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise ValueError(f"nothing is asserted in {reprlib.repr(source)}")
    if not wanted(tree):
        message = f"nothing is taken from the program in {reprlib.repr(source)}"
        raise ValueError(f"{message}; to have `check` called, add a column 'entry_point'")
    return AssertTest(source=source.encode())


@cache
def _harness() -> bytes:
    return Path(code_harness.__file__).read_bytes()


@cache
def _executor() -> bytes:
    return f"from __future__ import annotations\n{inspect.getsource(code_harness.execute)}".encode()
