"""A small process around a run: passes signals on, bounds the time until it ends, cleans up, starts it again.

    shell, scheduler ──signal──► supervisor ──signal──► the run's process ── Ray, engines, reward workers
                                 (this module)          (its own session)

The run has a session of its own. A signal to a whole process group, such as Ctrl-C or SLURM's, would end its engines and ranks at
once. So it reaches the run alone, which writes a checkpoint while they live.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from rl.signals.stopping import RELAYED_SIGTERM, STATUS_OF_SIGNAL
from rollout.engine.vllm_processes import remove_unmapped, segments_of, semaphores_of, wait_until_ended

SUPERVISOR_VAR = "SAPO_SUPERVISOR"
"""The environment variable of a supervised run: the supervisor's process and the number of the start. `off`: no supervisor, as a
debugger needs, which reads from the terminal."""
POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
"""Seconds that processes of an ended run have to end by themselves."""
GRACE_AFTER_KILL_SECONDS = 1.0
"""The same where the run was killed, and could not end them."""
RESTART_PAUSE_SECONDS = 2.0
"""Pause before a run that has died is started again, in seconds."""
USER_ERROR = 2
"""The exit status of a mistake in the options, which another start would repeat."""
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36


def needs_supervisor() -> bool:
    """Returns True in a process that should start the run in another one."""
    return SUPERVISOR_VAR not in os.environ and sys.platform == "linux"


def number_of_start() -> int:
    """Returns 0 in a run's first process, more in one that was started again. The process ends with its supervisor from here on."""
    supervisor, _, start = os.environ.get(SUPERVISOR_VAR, "").partition(" ")
    if supervisor != str(os.getppid()):
        return 0
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    return int(start)


def supervise(command: Sequence[str], *, stop_timeout: float, restarts: int) -> int:
    """Runs a command until it ends, and returns its exit status.

    Args:
        command: The run.
        stop_timeout: Seconds after a signal when the run is killed.
        restarts: Times that a run which has died is started again.
    """
    _prctl(_SET_CHILD_SUBREAPER, 1)  # orphans of the run become children of this process
    died: list[_SupervisedRun] = []
    for start in range(restarts + 1):
        run = _SupervisedRun(command, start, stop_timeout)
        status = run.wait()
        if status == 0 or run.signal:
            for each in died:  # until then, their logs were of use
                each.remove_ray_session()
        if status in (0, USER_ERROR) or run.signal or start == restarts:
            return status
        died.append(run)
        print(f"the run has ended with status {status}: restart {start + 1} of {restarts}", file=sys.stderr, flush=True)
        time.sleep(RESTART_PAUSE_SECONDS)
        if run.signal:  # it came in the pause
            return STATUS_OF_SIGNAL + run.signal
    raise AssertionError("the last start returns")


class _SupervisedRun:
    """One start of the run."""

    def __init__(self, command: Sequence[str], start: int, stop_timeout: float) -> None:
        self._stop_timeout, self._deadline = stop_timeout, float("inf")
        self._segments: set[Path] = set()
        self.signal = 0
        """Number of the signal that has come; 0 so far."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        environment = {**os.environ, SUPERVISOR_VAR: f"{os.getpid()} {start}"}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True)

    def wait(self) -> int:
        """Waits for the run's end, kills what it leaves, and returns its exit status."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = self._process.wait(POLL_SECONDS)
                break
            if self.signal:
                self._note_segments()
            if time.monotonic() > self._deadline:
                print(f"not ended {self._stop_timeout:g} s after the signal: killed", file=sys.stderr, flush=True)
                self._process.kill()
        self._clean_up(GRACE_AFTER_KILL_SECONDS if status < 0 else GRACE_SECONDS)
        if status < 0:
            return STATUS_OF_SIGNAL + (self.signal or -status)
        return status

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number != signal.SIGINT:
            return
        if not self.signal:
            self.signal, self._deadline = number, time.monotonic() + self._stop_timeout
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, RELAYED_SIGTERM if number == signal.SIGTERM else number)

    def remove_ray_session(self) -> None:
        """Deletes the folder of the run's Ray session, with its logs."""
        root = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
        for folder in root.glob(f"session_*_{self._process.pid}"):
            shutil.rmtree(folder, ignore_errors=True)

    def _clean_up(self, grace: float) -> None:
        """Waits for the run's processes, kills those that stay, and removes shared memory that nobody maps any more."""
        deadline = time.monotonic() + grace
        while (left := self._descendants()) and time.monotonic() < deadline:
            self._note_segments()
            time.sleep(POLL_SECONDS / 4)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_ended(left, GRACE_SECONDS)
        self._descendants()
        remove_unmapped(self._segments)

    def _note_segments(self) -> None:
        processes = self._descendants()
        self._segments |= segments_of(processes)
        for process in processes:
            self._segments |= semaphores_of(process.pid)

    def _descendants(self) -> list[psutil.Process]:
        """Returns the living processes below this one, and collects orphans of the run that have ended here."""
        living = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.status() != psutil.STATUS_ZOMBIE:
                    living.append(process)
                elif process.ppid() == os.getpid() and process.pid != self._process.pid:
                    os.waitpid(process.pid, os.WNOHANG)
        return living


def _prctl(option: int, value: int) -> None:
    """Calls Linux's prctl; elsewhere it does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
