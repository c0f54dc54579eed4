"""The processes of an actor on its node, and their end in any state: Ray does not end a process that is stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.engine.vllm_processes import remove_unmapped, segments_of, semaphores_of, wait_until_ended

END_SECONDS = 10.0
"""Longest wait for the end of killed processes, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProcesses:
    """The processes and shared memory of an actor, to be cleaned up if it dies."""

    node: str
    """The Ray node's id."""
    processes: tuple[tuple[int, float], ...]
    """Process id and start time of each process. The actor's own is the first."""
    segments: tuple[Path, ...]
    """Files in /dev/shm that they map."""


def processes_here() -> NodeProcesses:
    """Returns this actor's process and all that it has started."""
    actor = psutil.Process()
    processes = [actor, *actor.children(recursive=True)]
    return NodeProcesses(
        node=ray.get_runtime_context().get_node_id(),
        processes=tuple((process.pid, process.create_time()) for process in processes),
        segments=tuple(segments_of(processes)),
    )


def kill_processes(processes: NodeProcesses) -> ray.ObjectRef:
    """Starts a task on their node that kills processes, waits for their end and removes their shared memory. Returns its call."""
    there = NodeAffinitySchedulingStrategy(processes.node, soft=False)
    task = ray.remote(_kill_and_clean).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
    return task.remote(processes)


def _kill_and_clean(ended: NodeProcesses) -> None:
    processes = []
    for pid, start in ended.processes:
        try:
            process = psutil.Process(pid)
            if process.create_time() == start:  # else another process has got the same id
                process.kill()
                processes.append(process)
        except psutil.NoSuchProcess:
            continue
    wait_until_ended(processes, seconds=END_SECONDS)
    semaphores = [path for pid, _ in ended.processes for path in semaphores_of(pid)]
    remove_unmapped([*ended.segments, *semaphores])
