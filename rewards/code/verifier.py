"""Programs, run in a sandbox against tests that they cannot read."""

from __future__ import annotations

import logging
from functools import cache

from rewards.text.answer_text import answer_part
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rewards.workers.call import describe
from rollout.types import Completion, Prompt

_RANGES = {"seconds": (0.001, 1e5), "total_seconds": (0.001, 1e5), "memory_mib": (64, 1e6), "tolerance": (0, 0.1)}
_REMEDY = "give inputs and outputs, or assertions"


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

    The program is the last fenced block after the thoughts, or all of the text. Each test runs it in a new sandbox with the
    standard library, without packages, network, your files or a second process. Tests have these forms, in Python or JSON:

    - `[{"input": "3 4\\n", "output": "7\\n"}, ...]` or `{"inputs": [...], "outputs": [...]}`: standard input and the expected
      standard output. Lines must agree; white space between words does not count. Where a decimal number is expected, any
      number within `tolerance` passes.
    - the same with a function's name: `"fn_name"` beside or in it, or the column `fn_name`. Inputs are then its arguments, in a
      list or one JSON value a line, and outputs its return values, as JSON. It may be a method of a class `Solution`. Where
      each of `outputs` is a list of one value, as in APPS, that value passes, too.
    - assertions, `"assert add(3, 4) == 7"`: one text, or a list with one test each. Where a text defines `check`, as in
      HumanEval, it is called with the function that the column `entry_point` names.

    Args:
        partial: Rewards the share of tests that pass; else all must pass.
        seconds: Wall-clock time of one test, including 50 ms for a sandbox.
        total_seconds: Time of all tests of a response; later tests fail. Keep it below the `RewardRunner`'s timeout, 10 s.
        memory_mib: MiB that a program may use.
        tolerance: Absolute and relative tolerance of decimal numbers, only relative for those below 1,000 times it; 0: none.
        unsandboxed: Runs programs with all rights of this user: they can read the tests, delete your files, and keep running.
            Only for machines that are themselves a sandbox.

    Returns:
        1.0, 0.0 or the share, `UNREAD` without a program; a `Score` with an error if tests cannot be read or isolated here.

    Raises:
        ValueError: An option is out of range.
    """
    _check_ranges(seconds=seconds, total_seconds=total_seconds, memory_mib=memory_mib, tolerance=tolerance)

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        from rewards.code.sandbox import Limits, Unavailable
        from rewards.code.tests import program_in, read_tests, results

        try:
            tests = read_tests(prompt, tolerance)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            return _no_verdict(prompt, f"its tests cannot be read: {describe(error)}; {_REMEDY}")
        if (obstacle := _obstacle(unsandboxed)) is not None:
            return _no_verdict(prompt, obstacle)
        if not (program := program_in(answer_part(completion))):
            return UNREAD
        limits = Limits(seconds=seconds, memory_mib=memory_mib)
        passed = results(tests, program, limits, total_seconds, not unsandboxed)
        try:
            return sum(passed) / len(tests) if partial else float(all(passed))
        except (Unavailable, OSError) as error:
            return _no_verdict(prompt, describe(error))

    return verify


def _check_ranges(**options: float) -> None:
    for name, value in options.items():
        low, high = _RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} of code_tests must be from {low} to {high}, got {value}")


def _obstacle(unsandboxed: bool) -> str | None:
    """Returns the reason why programs cannot be run, with a remedy; warns if they are run without a sandbox."""
    from rewards.code.sandbox import unavailable_reason

    if unsandboxed:
        _warn_unsandboxed()
        return None
    reason = unavailable_reason()
    return reason and f"{reason}; or run programs without isolation, by code_tests(unsandboxed=True)"


def _no_verdict(prompt: Prompt, reason: str) -> Score:
    return Score(reward=0.0, error=f"code_tests has no verdict for prompt {prompt.id!r}: {reason}")


@cache
def _warn_unsandboxed() -> None:
    message = "code_tests(unsandboxed=True): programs of the policy run with all rights of this user"
    logging.getLogger(__name__).warning(message)
