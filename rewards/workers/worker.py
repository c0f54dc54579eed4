"""The process that calls a user's reward function: `python -m rewards.workers.worker CONNECTION_FD LIFELINE_FD BYTES CACHED`.

It is a program of its own, and not a `multiprocessing` child, because those import the main script of their parent
again: a recipe, and with it torch and Ray. It receives the pickled reward and answers whether that could be loaded, and whether it
scores groups together; then it answers each group (see `WorkerProcess.send`) by lists of scores, each sent as soon as it is
known, so that the parent always knows which call is running: one for each completion, or one for all. In between it says `None`
where a part of the reward is about to be called for the first time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import re
import resource
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from rewards.types import Score
from rewards.workers.call import attempt, before_first_calls, describe, scores_together, verdicts
from rollout.types import Completion


def main() -> None:
    """Serves the parent until it hangs up."""
    connection_fd, lifeline_fd, memory, num_cached = map(int, sys.argv[1:])
    _die_with(lifeline_fd)
    os.set_inheritable(connection_fd, False)
    connection = Connection(connection_fd)
    try:
        _serve(connection, memory, num_cached)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has hung up


def _serve(connection: Connection, memory: int, num_cached: int) -> None:
    try:
        reward = pickle.loads(connection.recv_bytes())
    except Exception as error:
        connection.send(describe(error))
        return
    connection.send(scores_together(reward))
    before_first_calls(lambda: connection.send(None))
    _limit_memory(memory)
    known = Known(num_cached)
    while True:
        prompt_id, num_completions, pickled_prompt, pickled_completions = connection.recv()
        try:
            prompt, completions = pickle.loads(pickled_prompt), pickle.loads(pickled_completions)
        except Exception as error:
            told = f"prompt {prompt_id!r} cannot be read in a reward worker: {describe(error)}"
            connection.send([Score(reward=0.0, error=told)] * num_completions)
            continue
        if scores_together(reward):
            connection.send(verdicts(reward, prompt, completions))
            continue
        asked = hashlib.blake2b(pickled_prompt).digest()
        for completion in completions:
            connection.send([known.score(asked, completion, partial(attempt, reward, prompt))])


class Known:
    """The last verdicts, so that what is asked twice is scored once.

    Args:
        room: Verdicts to keep; 0 keeps none.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._scores: OrderedDict[object, Score] = OrderedDict()

    def score(self, asked: bytes, completion: Completion, attempt: Callable[[Completion], Score]) -> Score:
        """The verdict on a completion of what was asked; failures are tried again, and episodes are more than their tokens."""
        key = (asked, completion.text, completion.token_ids.tobytes(), completion.finish_reason)
        if key in self._scores:
            self._scores.move_to_end(key)
            return self._scores[key]
        score = attempt(completion)
        if self._room and score.error is None and completion.turns is None:
            self._scores[key] = score
            if len(self._scores) > self._room:
                self._scores.popitem(last=False)
        return score


def _limit_memory(num_bytes: int) -> None:
    """Has the kernel refuse this process, and each that it starts, more memory than it has now and so many bytes (0: any)."""
    if num_bytes:
        # Of data, and not of addresses: libraries reserve far more of these than they ever use.
        [kib] = re.findall(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        has = 1024 * int(kib)
        resource.setrlimit(resource.RLIMIT_DATA, (has + num_bytes, has + num_bytes))


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
