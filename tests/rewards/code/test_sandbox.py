"""Programs that nobody has read do their worst, and nothing comes of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rewards.code import sandbox, seccomp
from rewards.code.sandbox import MIB, PYTHON, Limits, ProgramResult, Unavailable, run, unavailable_reason

ROOT = Path(__file__).parents[3]
MEMORY = 1000 + os.getpid() % 800  # MiB, a number that tells programs of this process from others
isolated_only = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"programs cannot be isolated here: {unavailable_reason()}"
)


def limits(seconds: float = 20.0) -> Limits:
    return Limits(seconds=seconds, memory_mib=MEMORY, disk_mib=8, output_bytes=100_000)


def outcome(program: str, seconds: float = 20.0, stdin: bytes = b"") -> ProgramResult:
    return run(program.encode(), stdin=stdin, limits=limits(seconds))


def programs_left() -> list[int]:
    """Process ids of programs started here, daemons included: whatever they do, their command line has the limit."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(MEMORY * MIB) in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    open_files = len(os.listdir("/proc/self/fd"))
    yield
    assert programs_left() == []
    assert [child for child in psutil.Process().children(recursive=True) if "bwrap" in child.name()] == []
    assert len(os.listdir("/proc/self/fd")) <= open_files


@isolated_only
def test_a_good_program_reads_and_writes() -> None:
    told = run(b"print(sum(map(int, input().split())))\nexit()", stdin=b"3 4\n", limits=limits())
    assert told == ProgramResult(returncode=0, stdout=b"7\n", stderr=b"", exceeded=None)


@isolated_only
@pytest.mark.parametrize(
    "program",
    [
        "import dataclasses, decimal, fractions, heapq, itertools, json, math, random, re, sqlite3, statistics; print(42)",
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50_000) - 49_958)",
        "import sys, threading\nthreading.stack_size(2**27)\n"
        "t = threading.Thread(target=lambda: print(42)); t.start(); t.join()",
        "if __name__ == '__main__': print(42)",
        "open('/tmp/a', 'w').write('42'); print(open('a').read())",
        "import asyncio\nasync def f(): return 42\nprint(asyncio.run(f()))",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(42).x)",
        "import pickle\nclass A: pass\nprint(42 if type(pickle.loads(pickle.dumps(A()))) is A else 0)",
        "print(open('/dev/stdin').read().strip())",
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: (print(42), exit()))\n"
        "signal.setitimer(signal.ITIMER_REAL, .01)\nsignal.pause()",
    ],
)
def test_what_honest_programs_use_is_there(program: str) -> None:
    told = outcome(program, stdin=b"42\n")
    assert (told.stdout, told.stderr, told.returncode) == (b"42\n", b"", 0)


# Each says HARM where it got what it tried to get.
TRESPASSES = {
    "fork": "import os\nif os.fork() >= 0: print('HARM')",
    "vfork": "import subprocess\nsubprocess.run(['/usr/bin/true'])\nprint('HARM')",
    "spawn": "import os\nos.posix_spawn('/usr/bin/true', ['true'], {})\nprint('HARM')",
    "raw fork": "import ctypes\nif ctypes.CDLL(None).syscall(57) >= 0: print('HARM')",
    "raw clone": "import ctypes\nif ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0: print('HARM')",
    "raw clone3": "import ctypes\na = (ctypes.c_ulong * 11)()\na[4] = 17\n"
    "if ctypes.CDLL(None).syscall(435, a, 88) >= 0: print('HARM')",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\nprint('HARM')",
    "pool": "import multiprocessing\nmultiprocessing.Pool(2)\nprint('HARM')",
    "passwords": "print('HARM', open('/etc/passwd').read())",
    "shadow": "print('HARM', open('/etc/shadow').read())",
    "home": "import os\nfor home in '/home', '/root':\n    for folder, below, files in os.walk(home):\n"
    f"        if folder == {os.path.realpath(sys.base_prefix)!r}: below.clear()\n        elif files: print('HARM', folder)",
    "project": f"print('HARM', open({str(ROOT / 'pyproject.toml')!r}).read())",
    "this test": f"print('HARM', open({__file__!r}).read())",
    "our files through proc": "import os\nfor p in os.listdir('/proc'):\n    if p.isdigit() and p != '1': print('HARM', p)",
    "our environment": "import os\nif 'SECRET' in str(os.environ) + open('/proc/1/environ').read(): print('HARM')",
    "inherited files": "import os\nfor fd in range(3, 64):\n    try: os.fstat(fd)\n    except OSError: continue\n    print('HARM')",
    "stdin rewritten": "import os\nos.write(os.open('/proc/self/fd/0', os.O_RDWR), b'x')\nprint('HARM')",
    "write /": "open('/x', 'w')\nprint('HARM')",
    "write /usr": "open('/usr/x', 'w')\nprint('HARM')",
    "write the library": f"open({os.path.join(sys.base_prefix, 'lib', 'x')!r}, 'w')\nprint('HARM')",
    "write /dev": "open('/dev/x', 'w')\nprint('HARM')",
    "write settings of the kernel": "import os\nfor d, _, fs in os.walk('/proc/sys'):\n    for f in fs:\n        try:\n"
    "            os.close(os.open(os.path.join(d, f), os.O_WRONLY))\n            print('HARM', d, f)\n"
    "        except OSError: pass",
    "make root writable": "import ctypes\nif ctypes.CDLL(None).mount(0, b'/', 0, 32, 0) == 0: print('HARM')",
    "mount": "import ctypes\nif ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, 0) == 0: print('HARM')",
    "new namespace": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: print('HARM')",
    "chroot": "import os\nos.chroot('/tmp')\nprint('HARM')",
    "symlink": "import os\nos.symlink('/etc/passwd', '/tmp/p')\nprint('HARM', open('/tmp/p').read())",
    "dots": "print('HARM', open('../../../../etc/passwd').read())",
    "setuid": "import os\nos.setuid(0)\nprint('HARM')",
    "device": "import os\nos.mknod('/tmp/d', 0o60600, os.makedev(254, 0))\nprint('HARM')",
    "disk": "import os\nfor d in os.listdir('/dev'):\n    if d.startswith(('sd', 'vd', 'nvme', 'mem', 'kvm')): print('HARM', d)",
    "trace": "import ctypes\nif ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0: print('HARM')",
    "outlive the parent": "import ctypes\nif ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0: print('HARM')",
    "shared memory": "import ctypes\nif ctypes.CDLL(None).shmget(0, 1 << 33, 0o1600) >= 0: print('HARM')",
    "file in memory": "import os\nos.memfd_create('x')\nprint('HARM')",
    "raise the limit": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))\nprint('HARM')",
    "socket": "import socket\nsocket.socket()\nprint('HARM')",
    "the internet": "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)\nprint('HARM')",
    "the host of a virtual machine": "import socket\nsocket.socket(socket.AF_VSOCK)\nprint('HARM')",
    "kill the parent": "import os\nif os.getppid(): print('HARM')\nos.kill(os.getppid() or 1, 9)",
    "kill all": f"import os\nfor pid in -1, 0, {os.getpid()}: os.kill(pid, 9)",
    "memory": "x = bytearray(2 * 10**9)\nprint('HARM')",
    "memory bit by bit": "x = []\nwhile len(x) < 130: x.append(bytearray(2**24))\nprint('HARM')",
    "big file": "f = open('/tmp/x', 'wb')\nfor _ in range(9 * 16): f.write(bytes(2**16))\nf.close()\nprint('HARM')",
    "many files": "for i in range(20): open(f'/tmp/{i}', 'wb').write(bytes(2**20))\nprint('HARM')",
    "core": "import os, resource\nos.abort()",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
}


@isolated_only
@pytest.mark.parametrize("name", TRESPASSES)
def test_trespasses_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPO_SECRET", "SECRET")
    told = outcome(TRESPASSES[name])
    assert b"HARM" not in told.stdout and b"SyntaxError" not in told.stderr and b"NameError" not in told.stderr
    assert told.exceeded is None, "it ended by itself"


@isolated_only
def test_a_server_on_this_machine_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = outcome(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nprint('HARM')")
        assert b"HARM" not in told.stdout
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
        socket.create_connection(("127.0.0.1", port), 1).close()  # it was there to be reached


NEVER_ENDING = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "loop with all signals ignored": "import signal\n"
    "for s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    "loop with every exception caught": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "outputs closed": "import os, time\nos.close(1); os.close(2)\ntime.sleep(1000)",
    "in C": "print(len(str(7**(10**8))))",
    "regular expression": "import re\nre.match('(a+)+b', 'a' * 100)",
    "threads": "import threading, time\nthreading.stack_size(32768)\nwhile True:\n"
    "    try: threading.Thread(target=time.sleep, args=(1000,)).start()\n    except BaseException: pass",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "empty files": "i = 0\nwhile True:\n    i += 1\n    try: open(f'/tmp/{i}', 'w').close()\n    except OSError: pass",
    "reading what never comes": "import os\nr, w = os.pipe()\nos.read(r, 1)",
}


@pytest.mark.slow
@isolated_only
@pytest.mark.parametrize("name", NEVER_ENDING)
def test_what_never_ends_is_ended(name: str) -> None:
    start = time.monotonic()
    told = outcome(NEVER_ENDING[name], seconds=1.0)
    assert told.exceeded == "seconds" and told.returncode == 128 + signal.SIGKILL
    assert time.monotonic() - start < 8


@isolated_only
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_cut(stream: str) -> None:
    told = outcome(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)")
    assert told.exceeded == "output_bytes"
    assert len(getattr(told, stream)) == 100_000


@isolated_only
def test_output_written_at_once_and_left_behind_is_read_to_its_end() -> None:
    told = outcome("import os\nos.write(1, b'x' * 60_000)\nos._exit(3)")
    assert (len(told.stdout), told.returncode, told.exceeded) == (60_000, 3, None)


@isolated_only
@pytest.mark.parametrize("program", [b"\0", b"\xff\xfe", b"print(", b"(" * 1000, b"x = " + b"-" * 5_000_000 + b"1"])
def test_what_is_no_program_ends_at_once(program: bytes) -> None:
    told = run(program, limits=limits())
    assert told.returncode != 0 and told.exceeded is None


def is_under_way() -> bool:
    """Whether a program of ours runs: no longer bubblewrap, which before that waits for another bubblewrap and would not end."""
    return any(psutil.Process(pid).cmdline()[0] == PYTHON for pid in programs_left())


@isolated_only
def test_programs_die_with_the_process_that_runs_them() -> None:
    sleep = f"run(b'import time; time.sleep(100)', limits=Limits(seconds=99, memory_mib={MEMORY}))"
    code = f"from rewards.code.sandbox import *; {sleep}"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 20
    while not is_under_way() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_under_way()
    runner.kill()
    runner.wait()
    while programs_left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert programs_left() == []


@isolated_only
def test_sets_have_the_same_order_in_every_run() -> None:
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert outcome(program).stdout == outcome(program).stdout


def test_without_isolation_the_limits_hold_all_the_same() -> None:
    def free(program: str, seconds: float = 20.0) -> ProgramResult:
        return run(program.encode(), limits=limits(seconds), isolated=False)

    assert free("print(42)") == ProgramResult(returncode=0, stdout=b"42\n", stderr=b"", exceeded=None)
    assert free("while True: pass", 0.5).exceeded == "seconds"
    assert free("while True: print('x' * 1000)").exceeded == "output_bytes"
    assert b"MemoryError" in free("x = bytearray(2 * 10**9)").stderr
    assert b"File too large" in free("open('x', 'wb').write(bytes(9 * 2**20))").stderr
    assert free("import os\nos.kill(os.getpid(), 9)").returncode == 137
    assert (
        free("import os, time\nif os.fork() == 0: time.sleep(100)\nprint(42)").stdout == b"42\n"
    )  # its child goes with it
    where = free("import os\nprint(os.getcwd())").stdout.decode().strip()
    assert where != os.getcwd() and not Path(where).exists()


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox._try.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="bubblewrap is missing"):
        outcome("print(42)")
    assert "bubblewrap is missing; isolation needs `apt-get install bubblewrap`" in str(unavailable_reason())
    monkeypatch.undo()
    assert unavailable_reason() is None or "bubblewrap is missing" not in str(unavailable_reason()), "it is tried again"


def test_bubblewrap_that_fails_is_no_fault_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho bwrap: no namespaces for you >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="could not start a program: bwrap: no namespaces for you"):
        outcome("print(42)")


def test_system_calls_are_known_for_two_architectures() -> None:
    assert seccomp.one_process("riscv64") is None
    for machine in ("x86_64", "aarch64"):
        told = seccomp.one_process(machine)
        assert told is not None and len(told) % 8 == 0 and len(told) // 8 < 4096


def test_the_interpreter_is_not_that_of_a_virtual_environment() -> None:
    assert Path(PYTHON).is_file() and ".venv" not in PYTHON
