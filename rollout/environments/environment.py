"""The protocol of an environment, and calls of a user's environment with a time limit."""

from __future__ import annotations

import asyncio
import inspect
from _thread import start_new_thread
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

from rollout.types import Completion, Done, Observation, Prompt


class Environment(Protocol):
    """The policy's partner in one episode. Both methods may be coroutines. Each call has a time limit.

    Calls run in threads of the loop's process, so code that a policy writes must not be run here.
    """

    def reset(self, prompt: Prompt) -> Any:
        """Begins the episode of `prompt`. The result is ignored."""

    def step(self, completion: Completion) -> Observation | Done:
        """Answers the policy's last turn, or ends the episode."""


MakeEnvironment: TypeAlias = Callable[[], Environment]
"""Makes the environment of one episode, such as a class."""


class EnvironmentFailed(Exception):
    """An environment raised, took too long, or returned what cannot be rendered. The message says which."""


def as_outcome(done: Done) -> Mapping[str, Any]:
    """Returns the outcome of an episode.

    Raises:
        EnvironmentFailed: If it is not a mapping.
    """
    if not isinstance(done.outcome, Mapping):
        raise EnvironmentFailed(f"the outcome is a {type(done.outcome).__name__}, not a mapping,")
    return done.outcome


async def call_environment(function: Callable[..., Any], limit: float, *args: Any) -> Any:
    """Calls a user's function with a time limit, and turns all that it raises into `EnvironmentFailed`.

    Args:
        function: A plain function or a coroutine function.
        limit: Seconds.
        args: The function's arguments.

    Raises:
        EnvironmentFailed: If it raises, tries to exit the program, or takes too long.
    """
    where = f"environment {getattr(function, '__qualname__', type(function).__name__)}"
    try:
        async with asyncio.timeout(limit) as timer:
            if inspect.iscoroutinefunction(function):
                return await function(*args)
            result = await asyncio.wrap_future(_in_thread(function, *args))
            return await result if inspect.isawaitable(result) else result
    except (Exception, SystemExit) as error:
        if isinstance(error, TimeoutError) and timer.expired():
            reason = f"took longer than rollout.environment_timeout = {limit:g} s"
        else:
            reason = f"raised {type(error).__name__}: {error}"
        raise EnvironmentFailed(f"{where} {reason}") from error


def _in_thread(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """Runs a call in its own daemon thread. One that never returns must neither block a pool nor keep the program from exiting."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except (SystemExit, StopIteration) as error:  # the one would end the event loop, the other cannot pass a future
            future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
        except BaseException as error:
            future.set_exception(error)

    # Thread.start would wait until the thread runs: on busy cores that costs the event loop milliseconds for each call.
    start_new_thread(run, ())
    return future
