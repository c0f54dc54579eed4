"""Running a Python program that nobody has read: in a sandbox that bubblewrap (`bwrap`) builds of Linux's namespaces.

Inside there are Python, read-only, an empty `/tmp`, and nothing else: no network, no files of ours, no other process. A start
takes 20 to 50 ms. What is not bounded but by time are the empty files that a program can create, some 100 bytes of kernel
memory each, and its threads, of which its memory has room for thousands. Where this process is killed in the first milliseconds
of a sandbox, and its process group is not, a bubblewrap (0.8) that has run nothing yet may stay, asleep.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal

from rewards.code.seccomp import one_process

MIB = 2**20
NOBODY = "65534"
# Not a virtual environment's, whose packages stay outside.
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # the same order of a set in every run
_READ_ONLY = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

# Python limits itself before it runs a program, for bubblewrap cannot. `-S` leaves out `exit()`, which programs use.
_LAUNCHER = """
import resource, site, sys, types
source, seconds, memory, disk = map(int, sys.argv[1:5])
for name, bound in dict(AS=memory, FSIZE=disk, CPU=seconds, NOFILE=64, CORE=0).items():
    hard = resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1]
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (bound, bound))
site.setquit()
sys.argv[:5] = ["program.py"]
sys.modules["__main__"] = main = types.ModuleType("__main__")
with open(source, "rb") as file:
    source = file.read()
exec(compile(source, "program.py", "exec"), main.__dict__)
"""


class Unavailable(RuntimeError):
    """Programs cannot be isolated here; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: On the wall clock, the start of the sandbox included; and of processor time.
        memory_mib: MiB of address space; Python itself takes 15, and a thread 8 unless it asks for less.
        disk_mib: MiB of files in `/tmp`, which are memory, too.
        output_bytes: Bytes on standard output and standard error together.
    """

    seconds: float = 4.0
    memory_mib: float = 1024
    disk_mib: float = 64
    output_bytes: int = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramResult:
    """How a program ended.

    Attributes:
        returncode: Its exit status; 128 + n where signal n ended it.
        stdout: What it wrote there, cut at the limit.
        stderr: Likewise.
        exceeded: The limit at which it was ended from outside; too much memory ends it by an exception of its own.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    exceeded: Literal["seconds", "output_bytes"] | None


class Running:
    """A program under way.

    Args:
        process: bubblewrap, or the program itself; its pipes do not block.
        status: What bubblewrap tells of itself, as a pipe; `None` without isolation.
    """

    def __init__(self, process: subprocess.Popen[bytes], status: int | None) -> None:
        self._process, self._status = process, status
        # bubblewrap speaks when there is a process inside, and falls silent when it fails.
        self._told = b"" if status is None else os.read(status, 4096)

    def outcome(self, limits: Limits) -> ProgramResult:
        """Waits until the program has ended, or goes beyond a limit and is ended.

        Raises:
            Unavailable: bubblewrap failed before the program was begun; likewise in `stop`.
        """
        written, exceeded = self._watch(limits)
        try:
            self.stop()
        except Unavailable as error:
            said = b"".join(bytes(output) + _read(pipe) for pipe, output in written.items())
            raise Unavailable(f"{error}: {said.decode(errors='replace').strip()[:300]}") from None
        for pipe, output in written.items():  # what was written last; a child that got away may hold the pipe open
            while len(output) <= limits.output_bytes and (chunk := _read(pipe)):
                output += chunk
        stdout, stderr = (bytes(output[: limits.output_bytes]) for output in written.values())
        if exceeded is None and sum(map(len, written.values())) > limits.output_bytes:
            exceeded = "output_bytes"
        code = self._process.returncode
        return ProgramResult(
            returncode=code if code >= 0 else 128 - code, stdout=stdout, stderr=stderr, exceeded=exceeded
        )

    def stop(self) -> None:
        """Ends whatever of the program is still there, and returns when it is gone."""
        if self._process.returncode is not None:
            return  # its number may be another's by now
        has_ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        with suppress(ProcessLookupError):
            if self._status is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            elif self._told and not has_ended:
                # The program itself, for which bubblewrap then waits; bubblewrap killed instead would leave that to others.
                os.kill(json.loads(self._told.split(b"}")[0] + b"}")["child-pid"], signal.SIGKILL)
        self._process.wait()
        if self._status is not None and has_ended and b'"exit-code"' not in self._told + os.read(self._status, 4096):
            raise Unavailable("bubblewrap could not start a program")

    def _watch(self, limits: Limits) -> tuple[dict[int, bytearray], Literal["seconds", "output_bytes"] | None]:
        """Reads both outputs until the program has ended, and says which limit it went beyond."""
        assert self._process.stdout is not None and self._process.stderr is not None
        deadline = time.monotonic() + limits.seconds
        written = {self._process.stdout.fileno(): bytearray(), self._process.stderr.fileno(): bytearray()}
        end = os.pidfd_open(self._process.pid)  # readable when the process has ended, and that leaves its number taken
        try:
            with selectors.DefaultSelector() as selector:
                for fd in (*written, end):
                    selector.register(fd, selectors.EVENT_READ)
                while (left := deadline - time.monotonic()) > 0:
                    ready = [key.fd for key, _ in selector.select(left)]
                    if end in ready:
                        return written, None
                    for pipe in ready:
                        chunk = _read(pipe)
                        written[pipe] += chunk
                        if not chunk:
                            selector.unregister(pipe)
                    if sum(map(len, written.values())) > limits.output_bytes:
                        return written, "output_bytes"
        finally:
            os.close(end)
        return written, "seconds"


def run(source: bytes, *, stdin: bytes = b"", limits: Limits, isolated: bool = True) -> ProgramResult:
    """Runs a Python program to its end, as `__main__`.

    Args:
        source: Its text.
        stdin: What it finds on standard input.
        limits: What it may use.
        isolated: In a sandbox; else it may do what this process may do, and only `limits` hold, each process for itself.

    Raises:
        Unavailable: There is no sandbox to be had.
    """
    with (
        memory_file(stdin) as stdin_fd,
        started(source, stdin_fd=stdin_fd, limits=limits, isolated=isolated) as program,
    ):
        return program.outcome(limits)


@contextmanager
def started(
    source: bytes, *argv: str, limits: Limits, isolated: bool, stdin_fd: int | None = None, fds: Sequence[int] = ()
) -> Iterator[Running]:
    """Starts a Python program, and ends it on the way out, if it has not ended by then.

    Args:
        source: Its text.
        argv: Its arguments.
        limits: What it may use; `seconds` and `output_bytes` hold in `Running.outcome`.
        isolated: As in `run`.
        stdin_fd: Its standard input; with `None`, all its standard streams lead nowhere.
        fds: File descriptors that it inherits, by the same numbers.

    Raises:
        Unavailable: There is no sandbox to be had.
    """
    with ExitStack() as stack:
        source_fd = stack.enter_context(memory_file(source))
        bounds = (int(limits.seconds) + 1, int(limits.memory_mib * MIB), int(limits.disk_mib * MIB))
        output = subprocess.DEVNULL if stdin_fd is None else subprocess.PIPE
        command = [PYTHON, "-SPB", "-c", _LAUNCHER, *map(str, (source_fd, *bounds)), *argv]
        inherited, status, cwd = [source_fd, *fds], None, "/"
        if isolated:
            filter_fd = stack.enter_context(memory_file(_filter()))
            status, status_end = os.pipe()
            stack.callback(os.close, status)
            told = stack.enter_context(os.fdopen(status_end, "wb"))
            inherited += [filter_fd, status_end]
            room = ("--json-status-fd", str(status_end), "--seccomp", str(filter_fd), "--size", str(bounds[2]))
            command = [*_walls(), *room, "--tmpfs", "/tmp", *_python_inside(), "--chdir", "/tmp", *command]
        else:
            cwd = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if stdin_fd is None else stdin_fd,
                stdout=output,
                stderr=output,
                pass_fds=inherited,
                env=ENVIRONMENT | ({} if isolated else {"HOME": cwd}),
                cwd=cwd,
                start_new_session=True,
            )
        )
        for pipe in filter(None, (process.stdout, process.stderr)):
            os.set_blocking(pipe.fileno(), False)
        if isolated:
            told.close()
        running = Running(process, status)
        try:
            yield running
        finally:
            running.stop()


@contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """Makes a file without a name that nobody can change, and yields its descriptor."""
    fd = os.memfd_create("file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _READ_ONLY)
        yield fd
    finally:
        os.close(fd)


def unavailable_reason() -> str | None:
    """Says why programs cannot be isolated here, and what would help; `None` where they can. Tried once, until it works."""
    try:
        _try()
    except (Unavailable, OSError) as error:
        return f"{error}; it takes `apt-get install bubblewrap`, and a container that allows user namespaces"
    return None


@cache
def _try() -> None:
    outcome = run(b"print(6 * 7)", limits=Limits(seconds=30))
    if outcome.stdout != b"42\n":
        raise Unavailable(f"bubblewrap does not run {PYTHON}: {outcome.stderr.decode(errors='replace').strip()[-300:]}")


def _filter() -> bytes:
    found = one_process(platform.machine())
    if found is None:
        raise Unavailable(f"system calls cannot be filtered on {platform.machine()}, only on x86_64 and aarch64")
    return found


def _walls() -> list[str]:
    """Returns bubblewrap and what it shuts out. `/proc` is read-only, for a root without rights still owns its settings."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise Unavailable("bubblewrap is missing")
    alone = ["--unshare-all", "--unshare-user", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    nobody = ["--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"]
    return [bwrap, *alone, *nobody, "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]


def _python_inside() -> list[str]:
    """Returns bubblewrap's words for the files that Python needs, and for closing the root behind them."""
    words = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for libraries in ("/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(libraries):
            words += ["--symlink", os.readlink(libraries), libraries]
        else:
            words += ["--ro-bind-try", libraries, libraries]
    prefix = os.path.realpath(sys.base_prefix)
    if not prefix.startswith("/usr/") and prefix != "/usr":
        words += ["--ro-bind", prefix, prefix]
    return [*words, "--remount-ro", "/"]


def _read(pipe: int) -> bytes:
    """Returns what there is to read, `b""` for nothing."""
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return b""
