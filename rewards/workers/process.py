"""The parent's handle on one worker process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe

import cloudpickle

from rewards.types import Score
from rollout.types import Completion, Prompt

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # one worker, one core
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",  # what a reward has printed is seen even if its process is killed
}


class WorkerProcess:
    """A process that holds a reward; it ends when killed, when its handle is dropped and when its parent dies.

    It leads a session of its own, so that Ctrl-C in the terminal does not reach it, and a kill reaches every process
    that the reward has started.

    Args:
        pickled_reward: By cloudpickle.
        memory: Bytes that it may take for what it does with it; 0: any number.
        num_cached: Verdicts that it keeps.
    """

    def __init__(self, pickled_reward: bytes, *, memory: int = 0, num_cached: int = 0) -> None:
        self.connection, theirs = Pipe()
        self._lifeline, their_lifeline = socket.socketpair()
        fds = (theirs.fileno(), their_lifeline.fileno())
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # imports find there what they find here
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "rewards.workers.worker",
                *map(str, (*fds, memory, num_cached)),
            ],  # -P: nothing in front of that path
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": path},
            start_new_session=True,
        )
        theirs.close()
        their_lifeline.close()
        with suppress(OSError):  # it has ended already: `receive` says so
            self.connection.send_bytes(pickled_reward)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._process.pid

    def send(self, prompt: Prompt, completions: Sequence[Completion]) -> None:
        """Hands over completions to score.

        Raises:
            Exception: They, or the prompt, cannot be pickled; whatever cloudpickle then raises.
        """
        pickled = cloudpickle.dumps(prompt), cloudpickle.dumps(completions)
        with suppress(OSError):
            self.connection.send((prompt.id, len(completions), *pickled))

    def has_ended(self) -> bool:
        """Says whether a process that was given nothing to do has ended: it has nothing to say but its end."""
        return self.connection.poll()

    def receive(self) -> list[Score] | bool | str | None:
        """Waits for the next message: first whether the reward scores groups together, or why it is not loaded; then scores.

        `None` says that a part of the reward is about to be called for the first time.

        Raises:
            OSError, EOFError: The process has ended.
        """
        message: list[Score] | bool | str | None = self.connection.recv()
        return message

    def kill(self) -> str:
        """Ends the process and whatever it has started; may be called again, and for a process that has ended.

        Returns:
            How the process ended, for a message: `exit code 3` or `SIGSEGV`.
        """
        if self._process.returncode is None:  # not yet waited for: the id cannot belong to anyone else
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        self.connection.close()
        self._lifeline.close()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
