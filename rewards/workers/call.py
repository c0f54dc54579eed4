"""One boundary for everything that a reward function can do wrong short of ending its process."""

from __future__ import annotations

import inspect
import math
import os
import sysconfig
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from reprlib import Repr
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

from rewards.types import GroupFunction, Score, Verifier
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import asyncio

_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80  # characters; also shields us from a `__repr__` that raises
_LIBRARIES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], str(Path(__file__).parent))
_NOT_THE_USERS = tuple(path + os.sep for path in _LIBRARIES)
_LISTENERS: list[Callable[[], None]] = []
_CALLED: set[int] = set()  # verifiers, by `id`: those of a reward live as long as the process that listens


def reward_name(reward: Verifier) -> str:
    """Returns the name by which errors call a reward."""
    return getattr(reward, "__name__", None) or type(reward).__name__


def before_first_calls(tell: Callable[[], None]) -> None:
    """Has a function called before the first call of each verifier in this process, parts of others included.

    In such a call a verifier imports its libraries, however late it comes: `by_task` calls one when its task does.
    """
    _LISTENERS.append(tell)


class OfGroup:
    """A verifier that sees all siblings of a group at once, and a single completion as a group of one."""

    def __init__(self, function: GroupFunction, name: str) -> None:
        self.score_group, self.__name__ = function, name

    def __call__(self, prompt: Prompt, completion: Completion) -> float | Score:
        return self.score_group(prompt, [completion])[0]


def scores_together(reward: Verifier) -> bool:
    """Says whether a reward is asked for all completions of a group at once: it compares them, or waits for others than itself."""
    function = inspect.unwrap(reward)
    return isinstance(function, OfGroup) or _is_async(function)


def verdicts(reward: Verifier, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
    """Calls a reward on all completions of a prompt: one by one, at the same time if it is async, together if it is `of_group`.

    Returns:
        [G] scores as `attempt` gives them.
    """
    if not scores_together(reward):
        return [attempt(reward, prompt, completion) for completion in completions]
    _announce(reward)
    sound = [completion for completion in completions if completion.error is None]
    if isinstance(function := inspect.unwrap(reward), OfGroup):
        found = iter(_of_siblings(function, prompt, sound))
    else:
        found = iter(_event_loop().run(_all_at_once(reward, prompt, sound)))
    return [next(found) if completion.error is None else _broken_off(completion) for completion in completions]


def attempt(reward: Verifier, prompt: Prompt, completion: Completion) -> Score:
    """Calls a reward and makes a `Score` of whatever it returns or raises; of an episode that broke off, its error.

    Returns:
        The score, all its numbers finite Python floats; its `error` names the reward and the prompt where the call
        raised, or returned something else than a finite number or a `Score`.
    """
    if completion.error is not None:
        return _broken_off(completion)
    _announce(reward)
    try:
        value = reward(prompt, completion)
        if inspect.isawaitable(value):
            value = awaited(value)
    except (Exception, SystemExit) as error:
        return _raised(error, reward, prompt)
    return _settled(value, reward, prompt)


def _announce(reward: Verifier) -> None:
    if _LISTENERS and id(reward) not in _CALLED:
        _CALLED.add(id(reward))
        for tell in _LISTENERS:
            tell()


def _of_siblings(reward: OfGroup, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
    if not completions:
        return []
    try:
        values = list(reward.score_group(prompt, completions))
    except (Exception, SystemExit) as error:
        return [_raised(error, reward, prompt)] * len(completions)
    if len(values) != len(completions):
        told = f"reward {reward_name(reward)!r} returned {len(values)} scores for {len(completions)} completions"
        told += f" of prompt {prompt.id!r}; return one for each, in their order"
        return [_failure(told, reward)] * len(completions)
    return [_settled(value, reward, prompt) for value in values]


async def _all_at_once(reward: Verifier, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
    import asyncio  # late, as everything that takes a tenth of a second

    async def one(completion: Completion) -> Score:
        try:
            value = await _result(reward(prompt, completion))
        except (Exception, SystemExit) as error:
            return _raised(error, reward, prompt)
        return _settled(value, reward, prompt)

    return await asyncio.gather(*map(one, completions))


def awaited(value: Awaitable[Any]) -> Any:
    """Returns what an async function's call comes to."""
    return _event_loop().run(_result(value))


async def _result(value: Any) -> Any:
    return await value


@cache
def _event_loop() -> asyncio.Runner:
    """One for the whole life of a process: what async rewards keep open, such as connections, belongs to it."""
    import asyncio

    return asyncio.Runner()


def _is_async(function: Verifier) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _settled(value: object, reward: Verifier, prompt: Prompt) -> Score:
    try:
        return to_score(value, reward, prompt)
    except ValueError as error:
        return _failure(str(error), reward)


def _raised(error: BaseException, reward: Verifier, prompt: Prompt) -> Score:
    told = f"reward {reward_name(reward)!r} raised {describe(error)} for prompt {prompt.id!r}"
    return _failure(told + _place(error), reward)


def _failure(told: str, reward: Verifier) -> Score:
    return Score(reward=0.0, error=told, failed=reward_name(reward))


def _broken_off(completion: Completion) -> Score:
    return Score(reward=0.0, error=completion.error, failed="episode")


def to_score(value: object, reward: Verifier, prompt: Prompt) -> Score:
    """Turns what a reward returned into a `Score` of finite Python floats.

    Args:
        value: A number (Python's or numpy's, bool included) or a `Score`.
        reward: The function that returned it, for the message.
        prompt: What it was asked about, for the message.

    Raises:
        ValueError: The value, or a number in the `Score`, is no finite real number.
    """
    if not isinstance(value, Score):
        return Score(reward=_finite(value, "", reward, prompt))
    parts = {str(name): _finite(part, f" as part {name!r}", reward, prompt) for name, part in value.parts.items()}
    if value.error is not None:
        return Score(reward=0.0, parts=parts, error=str(value.error), failed=value.failed or reward_name(reward))
    return Score(reward=_finite(value.reward, " as reward", reward, prompt), parts=parts)


def describe(error: BaseException) -> str:
    """Returns an exception on one line of bounded length: `KeyError: 'answer'`."""
    message = " ".join(str(error).split())
    message = message if len(message) <= 300 else message[:300] + "…"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _finite(value: object, role: str, reward: Verifier, prompt: Prompt) -> float:
    import numpy as np  # late: importing a verifier does not wait for it

    try:
        number = float(value) if isinstance(value, Real | np.bool_) else math.nan
    except OverflowError:
        number = math.inf
    if math.isfinite(number):
        return number
    returned = f"returned {_BRIEF.repr(value)} ({type(value).__name__}){role}"
    raise ValueError(
        f"reward {reward_name(reward)!r} {returned} for prompt {prompt.id!r}; return a finite float or a Score"
    )


def _place(error: BaseException) -> str:
    """Returns ` (FILE.py:LINE)` of the last frame in the user's own code, `""` where there is none."""
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THE_USERS)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
