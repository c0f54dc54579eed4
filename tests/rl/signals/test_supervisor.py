"""The process around a run: it passes signals on, bounds the time, leaves nothing, starts a run that has died again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import sys
from rl.signals import supervisor
supervisor.RESTART_PAUSE_SECONDS = supervisor.GRACE_SECONDS = .3
supervisor.POLL_SECONDS = .05
sys.exit(supervisor.supervise([sys.executable, "-c", sys.argv[1]], stop_timeout=float(sys.argv[2]), restarts=int(sys.argv[3])))
"""
ORDERLY = """
import signal, sys, time
def stop(number, frame):
    print("checkpoint", flush=True)
    sys.exit(128 + (signal.SIGTERM if number == signal.SIGUSR1 else number))
for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
print("ready", flush=True)
time.sleep(60)
"""
STUCK = """
import signal, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
LEAVES = """
import os, subprocess, sys
from multiprocessing import resource_tracker, shared_memory
segment = shared_memory.SharedMemory(create=True, size=1000)
child = '''
import time
from multiprocessing import shared_memory
segment = shared_memory.SharedMemory("NAME")
print("mapped", flush=True)
time.sleep(60)
'''.replace("NAME", segment.name)
process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
process.stdout.readline()
os.kill(resource_tracker._resource_tracker._pid, 9)
print(process.pid, segment.name, flush=True)
os.kill(os.getpid(), 9)
"""


DIES_ONCE = """
import os, pathlib, tempfile
pathlib.Path(tempfile.gettempdir(), "ray", f"session_now_{os.getpid()}").mkdir(parents=True)
start = int(os.environ["SAPO_SUPERVISOR"].split()[1])
os.kill(os.getpid(), 9) if start == 0 else os._exit(STATUS)
"""


def start(program: str, *, timeout: float = 60.0, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, program, str(timeout), str(restarts)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0, cwd=Path.cwd()
    )


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_reaches_the_run_once_and_its_status_is_returned(number: int):
    process = start(ORDERLY)
    ready(process)
    os.killpg(process.pid, number)
    assert process.stdout.read() == "checkpoint\n"
    assert process.wait() == 128 + number


def test_a_run_that_does_not_end_in_time_is_killed_with_the_status_of_the_signal():
    process = start(STUCK, timeout=0.3)
    ready(process)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert 0.3 <= time.monotonic() - sent < 10
    assert "not ended 0.3 s after the signal: killed" in process.stderr.read()


def test_what_a_killed_run_leaves_is_ended_and_its_shared_memory_removed():
    process = start(LEAVES)
    pid, name = process.stdout.readline().split()
    assert process.wait() == 128 + signal.SIGKILL
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    assert not (Path("/dev/shm") / name).exists()


def test_a_run_ends_with_its_supervisor():
    program = "import os\nfrom rl.signals.supervisor import number_of_start\nnumber_of_start()\nprint(os.getpid(), flush=True)\n"
    process = start(program + "import time; time.sleep(60)")
    run = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    run.wait(10)
    assert not run.is_running()


DIES_TWICE = """
import os, pathlib, sys
from rl.signals.supervisor import number_of_start
print("start", number_of_start(), flush=True)
if number_of_start() < 2:
    os.abort()
"""


def test_a_run_that_has_died_is_started_again_as_often_as_asked():
    process = start(DIES_TWICE, restarts=5)
    output, errors = process.communicate()
    assert (output, process.returncode) == ("start 0\nstart 1\nstart 2\n", 0)
    assert errors.splitlines()[0] == "the run has ended with status 134: restart 1 of 5"
    process = start(DIES_TWICE, restarts=1)
    assert process.communicate()[0] == "start 0\nstart 1\n" and process.returncode == 128 + signal.SIGABRT


@pytest.mark.parametrize(
    ("program", "status"), [("import sys; sys.exit(2)", 2), ("", 0)], ids=["a user's error", "an end"]
)
def test_a_mistake_in_the_options_and_an_end_are_no_reason_to_start_again(program: str, status: int):
    process = start(program, restarts=5)
    process.wait()
    assert (process.returncode, process.stderr.read()) == (status, "")


def test_a_run_that_a_signal_has_ended_is_not_started_again():
    process = start(ORDERLY, restarts=5)
    ready(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM and process.stderr.read() == ""


@pytest.mark.parametrize(("status", "folders"), [(0, 1), (1, 2)], ids=["went well", "ended with an error"])
def test_logs_of_a_start_that_died_are_kept_until_the_run_has_ended_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, folders: int
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert start(DIES_ONCE.replace("STATUS", str(status)), restarts=1).wait() == status
    assert len(list((tmp_path / "ray").iterdir())) == folders  # that of the last start is the run's own to delete


def test_a_signal_in_the_pause_before_a_restart_ends_the_run_instead():
    process = start("import os; os.kill(os.getpid(), 9)", restarts=1000)
    assert "restart 1 of 1000" in process.stderr.readline()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert process.stderr.read().count("restart") <= 1  # the signal may have come after the next start
