"""The memory of a process and its descendants while it runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.2
GROWTH = 1.01
"""Growth of the resident memory after which the shared pages are counted again, which takes a hundred times longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of all processes together, in bytes; a page that several share counts once."""

    total: int = 0
    """With pages of files: programs, libraries, mapped weights."""
    without_files: int = 0
    """Private and shared memory alone."""

    def peak(self, other: Memory) -> Memory:
        """Returns the larger of each figure."""
        return Memory(total=max(self.total, other.total), without_files=max(self.without_files, other.without_files))


def run_watched(words: Sequence[str], environment: Mapping[str, str], log: Path, *, watch: bool) -> Memory:
    """Runs a command to its end, with its output in a file.

    Args:
        words: The command.
        environment: Additional environment variables.
        log: The file.
        watch: Samples the memory, which takes some processor time.

    Returns:
        The peak; zeros if nothing is watched.

    Raises:
        RuntimeError: The command failed; with the end of its output.
    """
    peak = Memory()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(words, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT)
        try:
            if watch:
                peak = peak_memory(process)
        finally:
            process.wait()
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{' '.join(words)} failed with status {process.returncode}; the end of {log}:\n{end}")
    return peak


def peak_memory(process: subprocess.Popen[bytes]) -> Memory:
    """Returns the peak of a process and its descendants until it ends.

    A count of shared pages locks a process's memory for tens of milliseconds, so it is only made when resident memory has grown.
    """
    peak, largest = Memory(), 0.0
    while process.poll() is None:
        family = family_of(process.pid)
        resident = sum(map(resident_bytes, family))
        if resident > GROWTH * largest:
            largest, peak = resident, peak.peak(memory_of(family))
        time.sleep(SAMPLE_SECONDS)
    return peak


def family_of(pid: int) -> list[int]:
    """Returns a process and its descendants, Ray's and vLLM's among them."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def resident_bytes(pid: int) -> int:
    """Returns a process's resident memory; 0 if it has ended."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def memory_of(family: Sequence[int]) -> Memory:
    """Returns the memory of several processes."""
    total = without_files = 0
    for pid in family:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
        size = {name: 1024 * int(fields[name].split()[0]) for name in ("Pss", "Pss_Anon", "Pss_Shmem")}
        total += size["Pss"]
        without_files += size["Pss_Anon"] + size["Pss_Shmem"]
    return Memory(total=total, without_files=without_files)
