"""Memory and handles of a run's processes on this machine, to see over days what grows."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")
ROLES = {"LearnerActor": "learner", "EngineActor": "engines", "EngineCore": "engines", "VLLM": "engines"}
"""Part of a process's name → role. Ray and vLLM name their processes so; all others below the run are `others`."""


def resource_usage() -> dict[str, float]:
    """Returns the memory and the handles of this process and of all below it. On a cluster that is what runs on this machine.

    Returns:
        `memory/rss_driver`, `memory/rss_learner`, `memory/rss_engines`, `memory/rss_others`: resident bytes. Pages that several
        processes share count in each. `memory/shared_bytes`: the content of /dev/shm, of all users. `memory/handles`: open files,
        sockets and pipes.
    """
    this, resident, handles = psutil.Process(), Counter[str](), 0
    for process in (this, *this.children(recursive=True)):
        try:
            with process.oneshot():
                role = "driver" if process == this else role_of(process.name())
                resident[role] += process.memory_info().rss
                handles += process.num_fds()
        except psutil.Error:  # it has ended, or belongs to another user
            continue
    metrics = {f"memory/rss_{role}": float(num_bytes) for role, num_bytes in resident.items()}
    if SHARED_MEMORY.is_dir():
        metrics["memory/shared_bytes"] = float(shutil.disk_usage(SHARED_MEMORY).used)
    return metrics | {"memory/handles": float(handles)}


def role_of(name: str) -> str:
    """Returns the role of a process in a run by its name, such as `ray::_EngineActor.poll`."""
    return next((role for part, role in ROLES.items() if part in name), "others")
