"""Calls of reward functions, in which exceptions and bad values become scores with an error."""

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

from rewards.types import GroupFunction, Score, Unread, Verifier
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import asyncio

_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80  # characters; also shields us from a `__repr__` that raises
_LIBRARIES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], str(Path(__file__).parent))
_NOT_THE_USERS = tuple(path + os.sep for path in _LIBRARIES)
_FIRST_CALL_HOOKS: list[Callable[[], None]] = []
_CALLED: set[int] = set()  # ids of verifiers, which live as long as their worker process


def reward_name(reward: Verifier) -> str:
    """Returns the name by which errors call a reward."""
    return getattr(reward, "__name__", None) or type(reward).__name__


def before_first_calls(hook: Callable[[], None]) -> None:
    """Registers a function to be called before the first call of each verifier in this process.

    A verifier imports its libraries in its first call, and parts of a reward have theirs at different times: `by_task` calls
    a part when its task comes up.
    """
    _FIRST_CALL_HOOKS.append(hook)


class OfGroup:
    """A verifier that scores all completions of a group in one call; a single completion is a group of one."""

    def __init__(self, function: GroupFunction, name: str) -> None:
        self.score_group, self.__name__ = function, name

    def __call__(self, prompt: Prompt, completion: Completion) -> float | Score:
        return self.score_group(prompt, [completion])[0]


def is_group_reward(reward: Verifier) -> bool:
    """Returns whether one call of a reward scores a whole group: it compares completions, or is async and awaits them together."""
    function = inspect.unwrap(reward)
    return isinstance(function, OfGroup) or _is_async(function)


def score_completions(reward: Verifier, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
    """Calls a reward on all completions of a prompt: concurrently if it is async, in one call if it is `of_group`, else one by one.

    Returns:
        [G] scores, as `call_verifier` returns them.
    """
    if not is_group_reward(reward):
        return [call_verifier(reward, prompt, completion) for completion in completions]
    _run_first_call_hooks(reward)
    sound = [completion for completion in completions if completion.error is None]
    if isinstance(function := inspect.unwrap(reward), OfGroup):
        found = iter(_score_group(function, prompt, sound))
    else:
        found = iter(_event_loop().run(_score_concurrently(reward, prompt, sound)))
    return [next(found) if completion.error is None else _episode_failed(completion) for completion in completions]


def call_verifier(reward: Verifier, prompt: Prompt, completion: Completion) -> Score:
    """Calls a reward on one completion; an episode that failed has its own error as the score's.

    Returns:
        The score, with finite Python floats. Its `error` names the reward and the prompt where the call raised, or returned
        neither a finite number nor a `Score`.
    """
    if completion.error is not None:
        return _episode_failed(completion)
    _run_first_call_hooks(reward)
    try:
        value = reward(prompt, completion)
        if inspect.isawaitable(value):
            value = awaited(value)
    except (Exception, SystemExit) as error:
        return _exception_score(error, reward, prompt)
    return _value_score(value, reward, prompt)


def _run_first_call_hooks(reward: Verifier) -> None:
    if _FIRST_CALL_HOOKS and id(reward) not in _CALLED:
        _CALLED.add(id(reward))
        for hook in _FIRST_CALL_HOOKS:
            hook()


def _score_group(reward: OfGroup, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
    if not completions:
        return []
    try:
        values = list(reward.score_group(prompt, completions))
    except (Exception, SystemExit) as error:
        return [_exception_score(error, reward, prompt)] * len(completions)
    if len(values) != len(completions):
        message = f"reward {reward_name(reward)!r} returned {len(values)} scores for {len(completions)} completions"
        message += f" of prompt {prompt.id!r}; return one for each, in their order"
        return [_error_score(message, reward)] * len(completions)
    return [_value_score(value, reward, prompt) for value in values]


async def _score_concurrently(reward: Verifier, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
    import asyncio  # late: it takes a tenth of a second

    async def one(completion: Completion) -> Score:
        try:
            value = await _result(reward(prompt, completion))
        except (Exception, SystemExit) as error:
            return _exception_score(error, reward, prompt)
        return _value_score(value, reward, prompt)

    return await asyncio.gather(*map(one, completions))


def awaited(value: Awaitable[Any]) -> Any:
    """Returns the result of an async function's call."""
    return _event_loop().run(_result(value))


async def _result(value: Any) -> Any:
    return await value


@cache
def _event_loop() -> asyncio.Runner:
    """Returns the one event loop of this process; connections that async rewards keep open belong to it."""
    import asyncio

    return asyncio.Runner()


def _is_async(function: Verifier) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _value_score(value: object, reward: Verifier, prompt: Prompt) -> Score:
    try:
        return to_score(value, reward, prompt)
    except ValueError as error:
        return _error_score(str(error), reward)


def _exception_score(error: BaseException, reward: Verifier, prompt: Prompt) -> Score:
    message = f"reward {reward_name(reward)!r} raised {describe(error)} for prompt {prompt.id!r}"
    return _error_score(message + _place(error), reward)


def _error_score(message: str, reward: Verifier) -> Score:
    return Score(reward=0.0, error=message, failed=reward_name(reward))


def _episode_failed(completion: Completion) -> Score:
    return Score(reward=0.0, error=completion.error, failed="episode")


def to_score(value: object, reward: Verifier, prompt: Prompt) -> Score:
    """Converts a reward's return value to a `Score` with finite Python floats.

    Args:
        value: A number (of Python or numpy, bool included) or a `Score`.
        reward: The function that returned the value, for the message.
        prompt: The prompt of the call, for the message.

    Raises:
        ValueError: The value, or a number in the `Score`, is not a finite real number.
    """
    if not isinstance(value, Score):
        return Score(reward=_finite(value, "", reward, prompt), unread=isinstance(value, Unread))
    parts = {str(name): _finite(part, f" as part {name!r}", reward, prompt) for name, part in value.parts.items()}
    if value.error is not None:
        return Score(reward=0.0, parts=parts, error=str(value.error), failed=value.failed or reward_name(reward))
    return Score(reward=_finite(value.reward, " as reward", reward, prompt), parts=parts, unread=value.unread)


def describe(error: BaseException) -> str:
    """Returns an exception on one line of bounded length: `KeyError: 'answer'`."""
    message = " ".join(str(error).split())
    message = message if len(message) <= 300 else message[:300] + "…"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _finite(value: object, role: str, reward: Verifier, prompt: Prompt) -> float:
    import numpy as np  # late, so that importing a verifier is quick

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
    """Returns ` (FILE.py:LINE)` of the last frame in the user's code; `""` if there is none."""
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THE_USERS)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
