"""Filter of a sandboxed program's system calls, in the form that bubblewrap passes on (`man 2 seccomp`).

A program stays one process with any number of threads, so that a limit on one process's memory holds for all of it, and a
fork bomb cannot start. It opens no sockets: its network namespace has no interface, but AF_VSOCK, which leads from a virtual
machine to its host, ignores namespaces. It has only memory that its limit counts. It cannot cancel its death with its parent.
It also lacks the calls through which kernels are attacked and that no solution of a problem needs.
"""

from __future__ import annotations

import errno
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of BPF
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in `struct seccomp_data`; the argument's lower half
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000  # on x86_64, calls from here on repeat others under new numbers
_CLONE_THREAD = 0x10000
_SET_PARENT_DEATH_SIGNAL = 1

_EVERYWHERE = {  # newer calls, with the same number on every architecture
    "io_uring_setup": 425,
    "pidfd_getfd": 438,
    "memfd_secret": 447,
}
_NUMBERS = {  # from `man 2 syscalls`, by the values of `platform.machine()`
    "x86_64": {
        "clone": 56,
        "prctl": 157,
        "fork": 57,
        "vfork": 58,
        "unshare": 272,
        "setns": 308,
        "socket": 41,
        "memfd_create": 319,
        "shmget": 29,
        "msgget": 68,
        "ptrace": 101,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "bpf": 321,
        "perf_event_open": 298,
        "userfaultfd": 323,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
    },
    "aarch64": {
        "clone": 220,
        "prctl": 167,
        "unshare": 97,
        "setns": 268,
        "socket": 198,
        "memfd_create": 279,
        "shmget": 194,
        "msgget": 186,
        "ptrace": 117,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "bpf": 280,
        "perf_event_open": 241,
        "userfaultfd": 282,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
    },
}
_CLONE3 = 435
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def one_process(machine: str) -> bytes | None:
    """Returns the filter for a value of `platform.machine()`; `None` for an unknown architecture."""
    if machine not in _NUMBERS:
        return None
    denied = _NUMBERS[machine] | _EVERYWHERE
    clone, prctl = denied.pop("clone"), denied.pop("prctl")
    steps = [
        *(_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, _AUDIT[machine], 1, 0), _step(_RETURN, _KILL)),
        *(_step(_LOAD, _NUMBER), _step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _FAIL | errno.EPERM)),
        # The arguments of clone3 are in memory, which a filter cannot read; without clone3, the C library uses clone.
        *(_step(_EQUAL, _CLONE3, 0, 1), _step(_RETURN, _FAIL | errno.ENOSYS)),
        *(_step(_EQUAL, clone, 0, 4), _step(_LOAD, _FIRST_ARGUMENT), _step(_ANY_BIT, _CLONE_THREAD, 0, 1)),
        *(_step(_RETURN, _ALLOW), _step(_RETURN, _FAIL | errno.EPERM)),
        *(_step(_EQUAL, prctl, 0, 4), _step(_LOAD, _FIRST_ARGUMENT), _step(_EQUAL, _SET_PARENT_DEATH_SIGNAL, 0, 1)),
        *(_step(_RETURN, _FAIL | errno.EPERM), _step(_RETURN, _ALLOW)),
    ]
    for number in denied.values():
        steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _FAIL | errno.EPERM)]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _step(instruction: int, operand: int, skip_if: int = 0, skip_else: int = 0) -> bytes:
    return struct.pack("=HBBI", instruction, skip_if, skip_else, operand)
