"""Handle of one worker process, in its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe

import cloudpickle

from rewards.types import Score
from rollout.types import Completion, Prompt

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # one worker, one core
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",  # a reward's output is complete even if its process is killed
}


class WorkerProcess:
    """A process that calls a reward; it ends when killed, when its handle is dropped and when its parent dies.

    It leads a session of its own: Ctrl-C in the terminal does not reach it, and a kill reaches every process that the reward
    has started.

    Args:
        pickled_reward: The reward, pickled by cloudpickle.
        memory: Bytes that it may allocate after loading the reward; 0: any number.
        num_cached: Scores that it caches.
    """

    def __init__(self, pickled_reward: bytes, *, memory: int = 0, num_cached: int = 0) -> None:
        self.connection, child_connection = Pipe()
        self._exit_socket, child_exit_socket = socket.socketpair()
        fds = (child_connection.fileno(), child_exit_socket.fileno())
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # the worker imports from the same places
        self._process = subprocess.Popen(
            # -P: nothing in front of that path
            [sys.executable, "-P", "-m", "rewards.workers.worker", *map(str, (*fds, memory, num_cached))],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": path},
            start_new_session=True,
        )
        child_connection.close()
        child_exit_socket.close()
        with suppress(OSError):  # it has ended already, and `receive` will raise
            self.connection.send_bytes(pickled_reward)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._process.pid

    def send(self, prompt: Prompt, completions: Sequence[Completion]) -> None:
        """Sends completions to score, without experts, which are large and tell a reward nothing.

        Raises:
            Exception: The prompt or the completions cannot be pickled; the exception is cloudpickle's.
        """
        light = [replace(completion, routed_experts=None) for completion in completions]
        pickled = cloudpickle.dumps(prompt), cloudpickle.dumps(light)
        with suppress(OSError):
            self.connection.send((prompt.id, len(completions), *pickled))

    def has_ended(self) -> bool:
        """Returns whether an idle process has ended: the end is all that an idle connection can report."""
        return self.connection.poll()

    def receive(self) -> list[Score] | bool | str | None:
        """Waits for the next message.

        Returns:
            First a bool: whether one call scores a whole group; or a text: the reason why the reward cannot be loaded.
            Then lists of scores, and `None` before the first call of each part of the reward.

        Raises:
            OSError, EOFError: The process has ended.
        """
        message: list[Score] | bool | str | None = self.connection.recv()
        return message

    def kill(self) -> str:
        """Ends the process and all that it has started; may be called again, also for a process that has ended.

        Returns:
            The exit code or signal, for a message: `exit code 3` or `SIGSEGV`.
        """
        if self._process.returncode is None:  # not yet waited for, so the id cannot be another process's
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        self.connection.close()
        self._exit_socket.close()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
