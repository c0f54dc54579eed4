"""The process that calls a user's reward function: `python -m rewards.worker CONNECTION_FD LIFELINE_FD`.

It is a program of its own, and not a `multiprocessing` child, because those import the main script of their parent
again: a recipe, and with it torch and Ray. It receives the pickled reward and answers whether that could be loaded;
then it answers each group (the prompt's id; the number of completions; prompt and completions, pickled) by one `Score`
per completion, sent as soon as it is known, so that the parent always knows which call is running.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection

from rewards.checking import attempt, describe
from rewards.types import Score


def main() -> None:
    """Serves the parent until it hangs up."""
    connection_fd, lifeline_fd = int(sys.argv[1]), int(sys.argv[2])
    _die_with(lifeline_fd)
    os.set_inheritable(connection_fd, False)
    connection = Connection(connection_fd)
    try:
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has hung up


def _serve(connection: Connection) -> None:
    try:
        reward = pickle.loads(connection.recv_bytes())
    except Exception as error:
        connection.send(describe(error))
        return
    connection.send(None)
    while True:
        prompt_id, num_completions, payload = connection.recv()
        try:
            prompt, completions = pickle.loads(payload)
        except Exception as error:
            told = f"prompt {prompt_id!r} cannot be read in a reward worker: {describe(error)}"
            for _ in range(num_completions):
                connection.send(Score(reward=0.0, error=told))
            continue
        for completion in completions:
            connection.send(attempt(reward, prompt, completion))


def _die_with(lifeline_fd: int) -> None:
    """Has the kernel end this process when the parent's end of a socket closes, by SIGIO, whose default is just that.

    A busy worker would notice its parent's death only after the call that it is in. A thread could watch, but not while
    the reward holds the interpreter lock, as a runaway regular expression does; and Linux's parent-death signal comes
    when the *thread* that started the worker ends.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # a parent that ignores or blocks it has handed that down
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])
    os.set_inheritable(lifeline_fd, False)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    main()
