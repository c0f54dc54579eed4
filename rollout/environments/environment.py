"""The protocol of an environment, and calls of a user's environment with a time limit."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any, Protocol, TypeAlias

from rollout.types import Completion, Done, Observation, Prompt


class Environment(Protocol):
    """What answers the policy in one episode. Both methods may be coroutines; each call has a time limit.

    Calls run in threads of the loop's own process, so what a policy writes must not be run here as a program.
    """

    def reset(self, prompt: Prompt) -> Any:
        """Begins the episode that `prompt` asks for. Returns nothing of interest."""

    def step(self, completion: Completion) -> Observation | Done:
        """Answers what the policy has just said, or ends the episode."""


MakeEnvironment: TypeAlias = Callable[[], Environment]
"""Makes the environment of one episode; a class will do."""


class EnvironmentFailed(Exception):
    """An environment raised, took too long, or answered what cannot be shown; the message says which."""


def as_outcome(done: Done) -> Mapping[str, Any]:
    """What is known at an episode's end.

    Raises:
        EnvironmentFailed: It is not a mapping.
    """
    if not isinstance(done.outcome, Mapping):
        raise EnvironmentFailed(f"the outcome is a {type(done.outcome).__name__}, not a mapping,")
    return done.outcome


async def call_environment(function: Callable[..., Any], limit: float, *args: Any) -> Any:
    """Calls the user's code, for a limited time and with all that it may raise.

    Args:
        function: Plain, or a coroutine function.
        limit: Seconds.
        args: Its arguments.

    Raises:
        EnvironmentFailed: It raised, tried to end the program, or took too long.
    """
    where = f"environment {getattr(function, '__qualname__', type(function).__name__)}"
    try:
        async with asyncio.timeout(limit) as timer:
            if inspect.iscoroutinefunction(function):
                return await function(*args)
            found = await asyncio.wrap_future(_in_thread(function, *args))
            return await found if inspect.isawaitable(found) else found
    except (Exception, SystemExit) as error:
        if isinstance(error, TimeoutError) and timer.expired():
            told = f"took longer than rollout.environment_timeout = {limit:g} s"
        else:
            told = f"raised {type(error).__name__}: {error}"
        raise EnvironmentFailed(f"{where} {told}") from error


def _in_thread(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """Runs a call in a thread of its own: one that never returns must take neither a pool's place nor hold up the program's end."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except (SystemExit, StopIteration) as error:  # the one would end the event loop, the other cannot pass a future
            future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="environment").start()
    return future
