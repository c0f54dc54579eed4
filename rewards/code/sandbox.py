"""Runs an untrusted Python program in a sandbox that bubblewrap (`bwrap`) builds of Linux's namespaces.

The sandbox has Python, read-only, and an empty `/tmp`: no network, no files of ours, no other process. A start takes 20 to
50 ms. Only time bounds a program's empty files, some 100 bytes of kernel memory each, and its threads, of which its memory
has room for thousands. A bubblewrap (0.8) that has run nothing yet may stay, asleep, if this process is killed in the first
milliseconds of a sandbox without its process group.
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
# The base interpreter: the packages of a virtual environment stay outside.
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # fixed, so that sets have a fixed order
_READ_ONLY = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

# Python sets its own limits before it runs a program, as bubblewrap cannot. `-S` omits `exit()`, which programs use.
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
    """Limits on a program."""

    seconds: float = 4.0
    """Time on the wall clock, with the start of the sandbox; also the limit of processor time."""
    memory_mib: float = 1024
    """MiB of address space; Python takes 15 of it, and each thread 8 by default."""
    disk_mib: float = 64
    """MiB of files in `/tmp`, which are in memory, too."""
    output_bytes: int = MIB
    """Bytes on standard output and standard error together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramResult:
    """Exit status and output of a program."""

    returncode: int
    """The exit status; 128 + n after signal n."""
    stdout: bytes
    """Standard output, cut at the limit."""
    stderr: bytes
    """Standard error, cut at the limit."""
    exceeded: Literal["seconds", "output_bytes"] | None
    """The limit at which it was killed; too much memory raises an exception in the program instead."""


class Running:
    """A running program.

    Args:
        process: bubblewrap, or the program itself; its pipes do not block.
        status: The pipe of bubblewrap's status messages; `None` without isolation.
    """

    def __init__(self, process: subprocess.Popen[bytes], status: int | None) -> None:
        self._process, self._status = process, status
        # bubblewrap writes when the process inside exists; if it fails, it closes the pipe.
        self._status_text = b"" if status is None else os.read(status, 4096)

    def result(self, limits: Limits) -> ProgramResult:
        """Waits for the end of the program, and kills it if it exceeds a limit.

        Raises:
            Unavailable: bubblewrap failed before it started the program.
        """
        written, exceeded = self._watch(limits)
        try:
            self.stop()
        except Unavailable as error:
            message = b"".join(bytes(output) + _read(pipe) for pipe, output in written.items())
            raise Unavailable(f"{error}: {message.decode(errors='replace').strip()[:300]}") from None
        for pipe, output in written.items():  # the last output; an escaped child may hold the pipe open
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
        """Kills the program and waits until it is gone.

        Raises:
            Unavailable: bubblewrap failed before it started the program.
        """
        if self._process.returncode is not None:
            return  # by now, its id may be another process's
        has_ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        with suppress(ProcessLookupError):
            if self._status is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            elif self._status_text and not has_ended:
                # Kills the program itself, so that bubblewrap reaps it; a killed bubblewrap would leave that to others.
                os.kill(json.loads(self._status_text.split(b"}")[0] + b"}")["child-pid"], signal.SIGKILL)
        self._process.wait()
        if (
            self._status is not None
            and has_ended
            and b'"exit-code"' not in self._status_text + os.read(self._status, 4096)
        ):
            raise Unavailable("bubblewrap could not start a program")

    def _watch(self, limits: Limits) -> tuple[dict[int, bytearray], Literal["seconds", "output_bytes"] | None]:
        """Reads both outputs until the program has ended or exceeds a limit; returns the outputs and that limit."""
        assert self._process.stdout is not None and self._process.stderr is not None
        deadline = time.monotonic() + limits.seconds
        written = {self._process.stdout.fileno(): bytearray(), self._process.stderr.fileno(): bytearray()}
        end = os.pidfd_open(self._process.pid)  # readable when the process has ended; its id stays taken
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
        source: Text of the program.
        stdin: Content of its standard input.
        limits: Time, memory, disk and output.
        isolated: Runs it in a sandbox; else it has all rights of this process, and only `limits` hold, for each process.

    Raises:
        Unavailable: No sandbox can be made here.
    """
    with (
        memory_file(stdin) as stdin_fd,
        start_program(source, stdin_fd=stdin_fd, limits=limits, isolated=isolated) as program,
    ):
        return program.result(limits)


@contextmanager
def start_program(
    source: bytes, *argv: str, limits: Limits, isolated: bool, stdin_fd: int | None = None, fds: Sequence[int] = ()
) -> Iterator[Running]:
    """Starts a Python program, and kills it on exit from the context.

    Args:
        source: Text of the program.
        argv: Its arguments.
        limits: Limits; `seconds` and `output_bytes` hold in `Running.result`.
        isolated: As in `run`.
        stdin_fd: Its standard input; with `None`, all its standard streams are `/dev/null`.
        fds: File descriptors that it inherits, with the same numbers.

    Raises:
        Unavailable: No sandbox can be made here.
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
            status_file = stack.enter_context(os.fdopen(status_end, "wb"))
            inherited += [filter_fd, status_end]
            flags = ("--json-status-fd", str(status_end), "--seccomp", str(filter_fd), "--size", str(bounds[2]))
            command = [*_isolation_flags(), *flags, "--tmpfs", "/tmp", *_python_mounts(), "--chdir", "/tmp", *command]
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
            status_file.close()
        running = Running(process, status)
        try:
            yield running
        finally:
            running.stop()


@contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """Yields the descriptor of an unnamed, unchangeable file in memory."""
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
    """Returns the reason why programs cannot be isolated here, and a remedy; `None` if they can. A success is remembered."""
    try:
        _try()
    except (Unavailable, OSError) as error:
        return f"{error}; isolation needs `apt-get install bubblewrap`, and a container that allows user namespaces"
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


def _isolation_flags() -> list[str]:
    """Returns the command of bubblewrap and its isolation flags; `/proc` is read-only, as even a root without rights owns it."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise Unavailable("bubblewrap is missing")
    alone = ["--unshare-all", "--unshare-user", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    nobody = ["--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"]
    return [bwrap, *alone, *nobody, "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]


def _python_mounts() -> list[str]:
    """Returns the flags that mount the files Python needs, and then make the root read-only."""
    flags = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for libraries in ("/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(libraries):
            flags += ["--symlink", os.readlink(libraries), libraries]
        else:
            flags += ["--ro-bind-try", libraries, libraries]
    prefix = os.path.realpath(sys.base_prefix)
    if not prefix.startswith("/usr/") and prefix != "/usr":
        flags += ["--ro-bind", prefix, prefix]
    return [*flags, "--remount-ro", "/"]


def _read(pipe: int) -> bytes:
    """Returns the bytes that can be read now, or `b""`."""
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return b""
