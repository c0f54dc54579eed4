"""Signals: raised at once where a run may stop, kept where it may not, each process's own handlers back afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from rl.signals.stopping import RELAYED_SIGTERM, STATUS_OF_SIGNAL, STOP, Stopped


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, RELAYED_SIGTERM])
def test_a_signal_is_raised_where_it_comes(number: int):
    with STOP.handled(), pytest.raises(Stopped) as stopped:
        send(number)
    expected = signal.SIGTERM if number == RELAYED_SIGTERM else number
    assert stopped.value.number == expected and isinstance(stopped.value, KeyboardInterrupt)


def test_in_a_block_that_must_not_be_cut_it_is_kept():
    with STOP.handled(), STOP.kept():
        send()
        assert STOP.received == signal.SIGTERM
        with pytest.raises(Stopped):
            STOP.check()


def test_a_part_of_such_a_block_may_raise_it_and_what_closes_the_block_is_not_cut():
    closed = []
    with STOP.handled():
        with pytest.raises(Stopped), STOP.kept():
            try:
                with STOP.raised():
                    send()
            finally:
                send()  # a scheduler that repeats itself
                closed.append(True)
        assert closed == [True]


def test_one_that_was_kept_is_raised_where_a_part_begins():
    with STOP.handled(), STOP.kept():
        send()
        with pytest.raises(Stopped), STOP.raised():
            pytest.fail("it began")


def test_afterwards_the_handlers_are_those_of_before():
    before = [signal.getsignal(number) for number in STOP.SIGNALS]
    with STOP.handled():
        with STOP.handled():
            assert STOP.is_handling
        assert STOP.is_handling, "the outer block handles them"
    assert [signal.getsignal(number) for number in STOP.SIGNALS] == before
    assert STOP.received is None


def test_in_another_thread_nothing_is_handled():
    seen = []

    def run() -> None:
        with STOP.handled():
            seen.append(STOP.is_handling)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_second_ctrl_c_ends_the_process_at_once():
    program = """
import os, signal
from rl.signals.stopping import STOP
with STOP.handled(), STOP.kept():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("kept", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("not reached", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("kept\n", STATUS_OF_SIGNAL + signal.SIGINT)
