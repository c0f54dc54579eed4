"""Signals that end a run in order: SIGTERM of a scheduler, Ctrl-C, SIGHUP of a lost terminal.

A signal raises `Stopped` at once where a run starts or waits. It is kept where a step must not be cut: while the learner learns, a
checkpoint is begun, or the run is closed. There the loop looks for it between two steps.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STATUS_OF_SIGNAL = 128
"""The exit status of a run that a signal has ended is this plus the signal's number, as shells show it: 143 for SIGTERM."""


RELAYED_SIGTERM = signal.SIGUSR1
"""The supervisor's word for SIGTERM, which Ray's C++ code takes over as it starts: it prints a crash dump and ends the process."""


class Stopped(KeyboardInterrupt):
    """A signal has ended the run.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """Handles the signals of this process; `STOP` is the only one."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, RELAYED_SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the signal that has come; None so far."""
        self._kept = 0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals in the block, and then as before. Outside the main thread it changes nothing."""
        if threading.current_thread() is not threading.main_thread() or self.is_handling:
            yield
            return
        before: dict[int, Any] = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.received = None

    @property
    def is_handling(self) -> bool:
        """True if the signals are handled here."""
        return signal.getsignal(signal.SIGTERM) == self._receive

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps a signal that comes in the block for `check`."""
        self._kept += 1
        try:
            yield
        finally:
            self._kept -= 1

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raises a signal at once in this part of a `kept` block; one that has been kept at its beginning."""
        self.check()
        kept, self._kept = self._kept, 0
        try:
            self.check()
            yield
        finally:
            self._kept = kept

    def check(self) -> None:
        """Raises the signal that has come.

        Raises:
            Stopped: One has.
        """
        if self.received is not None:
            raise Stopped(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        number = signal.SIGTERM if number == RELAYED_SIGTERM else number
        if self.received is not None:
            if number == signal.SIGINT:  # a second Ctrl-C
                os._exit(STATUS_OF_SIGNAL + number)
            return
        self.received = number
        if not self._kept:
            raise Stopped(number)


STOP = StopSignals()
"""Signals belong to a process, so there is one of these."""
