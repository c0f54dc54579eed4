"""Programs, judged by running them: in a sandbox, against tests that they cannot see."""

from __future__ import annotations

import logging
from functools import cache

from rewards.types import Score, Verifier
from rewards.verifiers.options import with_options
from rewards.workers.call import describe
from rollout.types import Completion, Prompt

_RANGES = {"seconds": (0.001, 1e5), "total_seconds": (0.001, 1e5), "memory_mib": (64, 1e6), "tolerance": (0, 0.1)}


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
    it anew, in a sandbox (`rewards.code.sandbox`) without network, files of yours or a second process. It has Python's standard
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

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        from rewards.code.sandbox import Limits, Unavailable, unavailable_reason
        from rewards.code.tests import program_in, read_tests, results

        try:
            tests = read_tests(prompt, tolerance)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            told = f"its tests cannot be read: {describe(error)}; give inputs and outputs, or assertions"
            return _no_verdict(prompt, told)
        if unsandboxed:
            _warn()
        elif (missing := unavailable_reason()) is not None:
            return _no_verdict(prompt, f"{missing}; or let programs do as they like, by code_tests(unsandboxed=True)")
        limits = Limits(seconds=seconds, memory_mib=memory_mib)
        verdicts = results(tests, program_in(completion.text), limits, total_seconds, not unsandboxed)
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


@cache
def _warn() -> None:
    told = "code_tests(unsandboxed=True): programs of the policy run with all rights of this user"
    logging.getLogger(__name__).warning(told)
