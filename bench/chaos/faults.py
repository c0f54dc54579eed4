"""The kinds of faults, each a function that brings one upon a run."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from bench.chaos.run import ChaosRun
from rollout.config import Backend

Fault = Callable[[ChaosRun, random.Random], object]

FULL_DISK_STEPS = 3
"""Steps in which no file can grow: at least one of them has a checkpoint."""
FULL_DISK_SECONDS = 10.0
"""Longest time without room, in seconds."""


class NotThere(Exception):
    """The process that a fault is meant for is not there now."""


def _send(number: int, name: str) -> Fault:
    def fault(run: ChaosRun, rng: random.Random) -> None:
        processes = run.processes(name)
        if not processes:
            raise NotThere(name)
        rng.choice(processes).send_signal(number)

    return fault


def _pause_engine(run: ChaosRun, rng: random.Random) -> None:
    """Stops an engine for a moment: it is slow, and nothing else."""
    engines = run.processes("VLLM::EngineCore")
    if not engines:
        raise NotThere("VLLM::EngineCore")
    engines[0].suspend()
    time.sleep(rng.uniform(0.5, 3.0))
    engines[0].resume()


def _in_a_sync(what: str, stages: Sequence[str]) -> Fault:
    """Does something to the engine that comes to a stage of a weight sync first, on GPUs that are not there."""

    def fault(run: ChaosRun, rng: random.Random) -> None:
        assert run.gpus is not None
        (run.gpus / f"{what}-{rng.choice(stages)}").touch()

    return fault


def _hang_reward(run: ChaosRun, rng: random.Random) -> None:
    run.hang.touch()


def _break_weight(run: ChaosRun, rng: random.Random) -> None:
    run.nan.touch()


def _kill_driver(run: ChaosRun, rng: random.Random) -> None:
    driver = run.supervisor.children()
    if not driver:
        raise NotThere("driver")
    driver[0].kill()


def _full_disk(run: ChaosRun, rng: random.Random) -> None:
    """Fills the run's disk for some steps. Without one, lets no file of driver and learner grow."""
    step, until = run.step() + FULL_DISK_STEPS, time.monotonic() + FULL_DISK_SECONDS
    if run.disk is not None and run.disk.is_mounted:
        try:
            while run.step() < step and time.monotonic() < until and not run.has_ended():
                run.disk.fill()  # again and again: the run deletes checkpoints
                time.sleep(0.02)
        finally:
            run.disk.free()
        return
    writers = [run.driver(), *run.processes("LearnerActor")]
    before = {process.pid: resource.prlimit(process.pid, resource.RLIMIT_FSIZE) for process in writers}
    try:
        for pid, (_, hard) in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (64, hard))
        while run.step() < step and time.monotonic() < until and not run.has_ended():
            time.sleep(0.02)
    finally:
        for pid, limits in before.items():
            if psutil.pid_exists(pid):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def _damage(cut: bool) -> Fault:
    """Kills the driver, and damages the newest checkpoint before the next start."""

    def fault(run: ChaosRun, rng: random.Random) -> None:
        checkpoint = run.newest_checkpoint()
        if checkpoint is None:
            raise NotThere("checkpoint")
        _kill_driver(run, rng)
        file = rng.choice([path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.stat().st_size])
        size = file.stat().st_size
        if cut:
            os.truncate(file, rng.randrange(size))
            return
        with file.open("r+b") as content:
            place = rng.randrange(size)
            content.seek(place)
            byte = content.read(1)[0]
            content.seek(place)
            content.write(bytes([byte ^ (1 << rng.randrange(8))]))

    return fault


def _signal_run(number: int) -> Fault:
    def fault(run: ChaosRun, rng: random.Random) -> None:
        run.stop(number)

    return fault


FAULTS: Mapping[str, Fault] = {
    "learner killed": _send(signal.SIGKILL, "LearnerActor"),
    "learner stopped": _send(signal.SIGSTOP, "LearnerActor"),
    "weight made NaN": _break_weight,
    "vLLM killed": _send(signal.SIGKILL, "VLLM::EngineCore"),
    "engine's actor killed": _send(signal.SIGKILL, "EngineActor"),
    "vLLM stopped": _send(signal.SIGSTOP, "VLLM::EngineCore"),
    "vLLM slow": _pause_engine,
    "reward worker killed": _send(signal.SIGKILL, "rewards.workers.worker"),
    "reward worker stopped": _send(signal.SIGSTOP, "rewards.workers.worker"),
    "reward hangs": _hang_reward,
    "disk full": _full_disk,
    "driver killed": _kill_driver,
    "checkpoint cut": _damage(cut=True),
    "checkpoint with a flipped bit": _damage(cut=False),
    "raylet killed": _send(signal.SIGKILL, "raylet/raylet"),
    "GCS killed": _send(signal.SIGKILL, "gcs_server"),
    "SIGTERM": _signal_run(signal.SIGTERM),
    "SIGINT": _signal_run(signal.SIGINT),
}
"""Name → fault."""

STAGES = ("start_weight_update-1", "chunk-1", "chunk-2", "finish_weight_update-1")
"""Moments of a weight sync, as `tests.fake_gpus` names them."""
FAULTS_OF_TRANSFERS: Mapping[Backend, Mapping[str, Fault]] = {
    "shared_memory": {},
    "nccl": {
        "vLLM killed in a sync": _in_a_sync("SIGKILL", STAGES),
        "bit flipped in a sync": _in_a_sync("FLIP", ("chunk-1", "chunk-2", "chunk-3")),
    },
    "ipc": {"vLLM killed in a sync": _in_a_sync("SIGKILL", STAGES)},
}
"""The faults that a transport of weights has besides."""
