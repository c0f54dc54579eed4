"""Worker process that calls a user's reward: `python -m rewards.workers.worker CONNECTION_FD EXIT_FD BYTES CACHED`.

It is a program of its own, because children of `multiprocessing` import the main script of their parent again: a recipe, and
with it torch and Ray. Its messages are listed in `WorkerProcess.receive`. It sends each score, or each group's list of scores,
as soon as it is known, so that the parent always knows which call is running.
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
from rewards.workers.call import before_first_calls, call_verifier, describe, is_group_reward, score_completions
from rollout.types import Completion


def main() -> None:
    """Serves the parent until it hangs up."""
    connection_fd, exit_fd, memory, num_cached = map(int, sys.argv[1:])
    _exit_with_parent(exit_fd)
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
    connection.send(is_group_reward(reward))
    before_first_calls(lambda: connection.send(None))
    _limit_memory(memory)
    cache = ScoreCache(num_cached)
    while True:
        prompt_id, num_completions, pickled_prompt, pickled_completions = connection.recv()
        try:
            prompt, completions = pickle.loads(pickled_prompt), pickle.loads(pickled_completions)
        except Exception as error:
            message = f"prompt {prompt_id!r} cannot be read in a reward worker: {describe(error)}"
            connection.send([Score(reward=0.0, error=message)] * num_completions)
            continue
        if is_group_reward(reward):
            connection.send(score_completions(reward, prompt, completions))
            continue
        prompt_key = hashlib.blake2b(pickled_prompt).digest()
        for completion in completions:
            connection.send([cache.score(prompt_key, completion, partial(call_verifier, reward, prompt))])


class ScoreCache:
    """Cache of the latest scores: a completion that comes twice is scored once.

    Args:
        max_scores: Scores to keep; 0 keeps none.
    """

    def __init__(self, max_scores: int) -> None:
        self._max_scores = max_scores
        self._scores: OrderedDict[object, Score] = OrderedDict()

    def score(self, prompt_key: bytes, completion: Completion, call: Callable[[Completion], Score]) -> Score:
        """Returns the cached or computed score of a completion; errors and episodes, which are more than text, are not cached."""
        key = (
            prompt_key,
            completion.text,
            completion.token_ids.tobytes(),
            completion.finish_reason,
            completion.thinking,
        )
        if key in self._scores:
            self._scores.move_to_end(key)
            return self._scores[key]
        score = call(completion)
        if self._max_scores and score.error is None and completion.turns is None:
            self._scores[key] = score
            if len(self._scores) > self._max_scores:
                self._scores.popitem(last=False)
        return score


def _limit_memory(num_bytes: int) -> None:
    """Limits the memory of this process, and of each that it starts, to its present size plus so many bytes (0: no limit)."""
    if num_bytes:
        # RLIMIT_DATA instead of RLIMIT_AS: libraries reserve far more addresses than they ever use.
        [kib] = re.findall(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        limit = 1024 * int(kib) + num_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _exit_with_parent(exit_fd: int) -> None:
    """Makes the kernel end this process by SIGIO when the parent's end of a socket closes.

    A busy worker would notice its parent's death only after its current call. A thread could watch, but not while the reward
    holds the interpreter lock, as a runaway regular expression does. Linux's parent-death signal comes when the *thread* that
    started the worker ends.
    """
    signal.signal(
        signal.SIGIO, signal.SIG_DFL
    )  # ends the process; a child inherits a parent's ignored or blocked signals
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])
    os.set_inheritable(exit_fd, False)
    fcntl.fcntl(exit_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(exit_fd, fcntl.F_SETFL, fcntl.fcntl(exit_fd, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    main()
