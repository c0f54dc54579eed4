"""One boundary for everything that a reward function can do wrong short of ending its process."""

from __future__ import annotations

import math
import os
import sysconfig
from numbers import Real
from pathlib import Path
from reprlib import Repr
from traceback import extract_tb

from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt

_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80  # characters; also shields us from a `__repr__` that raises
_LIBRARIES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], str(Path(__file__).parent))
_NOT_THE_USERS = tuple(path + os.sep for path in _LIBRARIES)


def reward_name(reward: Verifier) -> str:
    """Returns the name by which errors call a reward."""
    return getattr(reward, "__name__", None) or type(reward).__name__


def attempt(reward: Verifier, prompt: Prompt, completion: Completion) -> Score:
    """Calls a reward and makes a `Score` of whatever it returns or raises; of an episode that broke off, its error.

    Returns:
        The score, all its numbers finite Python floats; its `error` names the reward and the prompt where the call
        raised, or returned something else than a finite number or a `Score`.
    """
    if completion.error is not None:
        return Score(reward=0.0, error=completion.error)
    try:
        value = reward(prompt, completion)
    except (Exception, SystemExit) as error:
        told = f"reward {reward_name(reward)!r} raised {describe(error)} for prompt {prompt.id!r}"
        return Score(reward=0.0, error=told + _place(error))
    try:
        return to_score(value, reward, prompt)
    except ValueError as error:
        return Score(reward=0.0, error=str(error))


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
        return Score(reward=0.0, parts=parts, error=str(value.error))
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
