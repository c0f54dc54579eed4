"""Programs, judged by running them: in a sandbox, against tests that they cannot see.

Expected outputs and assertions are never where the program is: outputs are compared here, and assertions run in a sandbox of
their own, which asks the program's for what it calls and gets back plain data. So there is no verdict to forge, no frame to
look into, and an object that claims to equal everything equals nothing. What remains: a program sees the input of its
test, and may know the answer to that by heart; assertions cannot hand it functions of theirs, compare instances of its
classes with `==`, or catch exceptions of its own making, and fail then.
"""

from __future__ import annotations

import ast
import json
import keyword
import logging
import re
import reprlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from rewards import code_harness
from rewards.answer_text import after_thinking
from rewards.checking import describe
from rewards.code_harness import close, wanted
from rewards.options import with_options
from rewards.sandbox import Limits, Running, Unavailable, memory_file, run, started, why_not
from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt

LONGEST_PROGRAM = 100_000  # characters; the longest that solve a problem have some thousands

_RANGES = {"seconds": (0.001, 1e5), "total_seconds": (0.001, 1e5), "memory_mib": (64, 1e6), "tolerance": (0, 0.1)}
_FENCE = re.compile(r"^[ \t]*```([^\n]*)$", re.MULTILINE)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]{1,3})?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinTest:
    """What a program reads on standard input, and what it has to write on standard output."""

    input: bytes
    output: str
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertTest:
    """Python that asserts something of what a program defines."""

    source: bytes


@with_options
def code_tests(
    *,
    partial: bool = False,
    seconds: float = 4.0,
    total_seconds: float = 8.0,
    memory_mib: int = 1024,
    tolerance: float = 1e-6,
    unsandboxed: bool = False,
) -> Verifier:
    """Rewards a Python program that passes the tests in `prompt.columns["tests"]`, or else in `prompt.answer`.

    The program is what the last fenced block of a response holds, behind its thoughts; without one, all of it. Each test runs
    it anew, in a sandbox (`rewards.sandbox`) without network, files of yours or a second process. It has Python's standard
    library, and no packages. The tests are one of these, in Python or as JSON:

    - `[{"input": "3 4\\n", "output": "7\\n"}, ...]` or `{"inputs": [...], "outputs": [...]}`: what the program reads on standard
      input and has to write on standard output. White space between words does not count, but for the ends of lines. Where a
      decimal number is expected, any number within `tolerance` will do.
    - the same with the name of a function, as `"fn_name"` beside or in it, or in the column `fn_name`: the inputs are its
      arguments, in a list or one JSON value a line, the outputs what it has to return, as JSON has it. It may be a method of a
      class `Solution`. Where every one of `outputs` is a list of one value, that value may be returned as well, as APPS means it.
    - assertions, `"assert add(3, 4) == 7"`, one text or a list of them, each of which is one test. Where a text defines
      `check`, as HumanEval does, it is called with the function that the column `entry_point` names.

    Args:
        partial: Rewards the share of tests that pass, instead of nothing unless all do.
        seconds: Time of one test on the wall clock, 50 ms for a sandbox included.
        total_seconds: Time of all tests of a response; those it does not suffice for have failed. Keep it below the timeout
            of the `RewardRunner`, which is 10 s.
        memory_mib: MiB that a program may use.
        tolerance: How far a decimal number may be off, absolutely or relatively; 0 wants the same text, and the same value.
        unsandboxed: Runs programs as this user, with all rights and no more than limits of time, memory and output. They can
            then read the tests, delete your files, and stay behind. Only for machines that are themselves a sandbox.

    Returns:
        1.0, 0.0 or the share; a `Score` with an error where tests cannot be read, or programs not be isolated on this machine.

    Raises:
        ValueError: An option is out of range.
    """
    _check_ranges(seconds=seconds, total_seconds=total_seconds, memory_mib=memory_mib, tolerance=tolerance)
    limits = Limits(seconds=seconds, memory_mib=memory_mib)

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        try:
            tests = _read_tests(prompt, tolerance)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            told = f"its tests cannot be read: {describe(error)}; give inputs and outputs, or assertions"
            return _no_verdict(prompt, told)
        if unsandboxed:
            _warn()
        elif (missing := why_not()) is not None:
            return _no_verdict(prompt, f"{missing}; or let programs do as they like, by code_tests(unsandboxed=True)")
        verdicts = _verdicts(tests, _program(completion.text), limits, total_seconds, not unsandboxed)
        try:
            return sum(verdicts) / len(tests) if partial else float(all(verdicts))
        except (Unavailable, OSError) as error:
            return _no_verdict(prompt, describe(error))

    return verify


def _check_ranges(**options: float) -> None:
    for name, value in options.items():
        low, high = _RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} of code_tests must be from {low} to {high}, got {value}")


def _no_verdict(prompt: Prompt, told: str) -> Score:
    return Score(reward=0.0, error=f"code_tests has no verdict for prompt {prompt.id!r}: {told}")


def _verdicts(
    tests: Sequence[StdinTest | AssertTest], program: bytes, limits: Limits, total_seconds: float, isolated: bool
) -> Iterator[bool]:
    """Says of one test after the other whether the program passes it, when asked."""
    deadline = time.monotonic() + total_seconds
    for test in tests:
        left = min(limits.seconds, deadline - time.monotonic())
        yield bool(program) and left > 0 and _passes(test, program, replace(limits, seconds=left), isolated)


def _program(text: str) -> bytes:
    """Returns the program in a response, `b""` where there is none that could be right."""
    text = after_thinking(text)
    if len(text) > 2 * LONGEST_PROGRAM:
        return b""
    block, start = text, None
    for fence in _FENCE.finditer(text):
        if start is None or fence[1].strip():
            start = fence.end()
        else:
            block, start = text[start : fence.start()], None
    if start is not None:
        block = text[start:]  # cut off; what is missing may have been no more than the end of the block
    try:
        return block.encode() if block.strip() and len(block) <= LONGEST_PROGRAM else b""
    except UnicodeEncodeError:
        return b""


def _passes(test: StdinTest | AssertTest, program: bytes, limits: Limits, isolated: bool) -> bool:
    if isinstance(test, AssertTest):
        return _holds(test, program, limits, isolated)
    outcome = run(program, stdin=test.input, limits=limits, isolated=isolated)
    if outcome.returncode != 0 or outcome.exceeded is not None:
        return False
    return _is_expected(outcome.stdout.decode(errors="replace"), test)


def _holds(test: AssertTest, program: bytes, limits: Limits, isolated: bool) -> bool:
    """Runs assertions and the program in two processes that talk to each other: `rewards.code_harness`."""
    with ExitStack() as stack:
        program_fd, test_fd, no_input = (stack.enter_context(memory_file(text)) for text in (program, test.source, b""))
        asking, answering = (stack.enter_context(end) for end in socket.socketpair())

        def start(role: str, channel: int, source_fd: int, stdin_fd: int | None) -> Running:
            fds = (channel, source_fd)
            argv = (role, *map(str, fds))
            return stack.enter_context(
                started(_harness(), *argv, limits=limits, isolated=isolated, stdin_fd=stdin_fd, fds=fds)
            )

        start("answer", answering.fileno(), program_fd, None)
        answering.close()  # so that the tests notice when the program is gone
        return start("check", asking.fileno(), test_fd, no_input).outcome(limits).stdout == b"passed"


def _is_expected(output: str, test: StdinTest) -> bool:
    """Compares line by line and word by word, numbers where decimal ones are expected."""
    got, expected = ([line.split() for line in text.strip().split("\n")] for text in (output, test.output))
    if [len(words) for words in got] != [len(words) for words in expected]:
        return False
    pairs = zip(chain.from_iterable(got), chain.from_iterable(expected), strict=True)
    return all(word == wish or _is_close(word, wish, test.tolerance) for word, wish in pairs)


def _is_close(word: str, wish: str, tolerance: float) -> bool:
    if not tolerance or len(word) > 100 or not _DECIMAL.fullmatch(wish) or not _NUMBER.fullmatch(word):
        return False
    return close(float(word), float(wish), tolerance)


def _read_tests(prompt: Prompt, tolerance: float) -> list[StdinTest | AssertTest]:
    """Returns a prompt's tests, at least one.

    Raises:
        ValueError, TypeError, SyntaxError: They are not what `code_tests` says they may be.
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
    """Returns tests that come as a list of inputs and a list of outputs one by one."""
    if not {"inputs", "outputs"} <= given.keys():
        raise ValueError(f"there are no 'inputs' and 'outputs' among {reprlib.repr(list(given))}")
    inputs, outputs = list(given["inputs"]), list(given["outputs"])
    rows = [{"input": entry, "output": output} for entry, output in zip(inputs, outputs, strict=True)]
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        rows = [row | {"or": row["output"][0]} for row in rows]
    return rows


def _text(value: Any) -> str:
    """Returns what a program reads or writes as one text; a list holds its lines."""
    if value is None:
        raise ValueError("an input or output is None")
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _call(function: str, arguments: Any, expected: Any, other: Any, tolerance: float) -> AssertTest:
    """Returns the assertion that a function returns what is expected, or else the other; `None` is no other."""
    if not isinstance(function, str) or not function.isidentifier() or keyword.iskeyword(function):
        raise ValueError(f"fn_name must be the name of a function, got {function!r}")
    if isinstance(arguments, str):
        arguments = [json.loads(line) for line in arguments.splitlines() if line.strip()]
        expected = json.loads(expected)
    wishes = [expected] if other is None else [expected, other]
    call = f"{function}(*__json__({json.dumps(list(arguments))!r}))"
    return AssertTest(source=f"assert __is_one_of__({call}, __json__({json.dumps(wishes)!r}), {tolerance})".encode())


def _assertions(source: str, entry_point: Any) -> AssertTest:
    """Returns assertions as they are run, after a look at whether they can fail at all."""
    tree = ast.parse(source)
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if "check" in defined and entry_point is not None:
        source += f"\ncheck({entry_point})"
        tree = ast.parse(source)
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise ValueError(f"nothing is asserted in {reprlib.repr(source)}")
    if not wanted(tree):
        told = f"nothing is taken from the program in {reprlib.repr(source)}"
        raise ValueError(f"{told}; to have `check` called, add a column 'entry_point'")
    return AssertTest(source=source.encode())


@cache
def _harness() -> bytes:
    return Path(code_harness.__file__).read_bytes()


@cache
def _warn() -> None:
    told = "code_tests(unsandboxed=True): programs of the policy run with all rights of this user"
    logging.getLogger(__name__).warning(told)
