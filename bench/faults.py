"""Kills engines at random moments, and compares the run with an undisturbed one.

    python -m bench.faults --kills 20
    python -m bench.faults --kills 20 --transfer nccl

SIGKILL goes to vLLM's worker, vLLM's core or the actor above both. Of the engines that get weights by NCCL or CUDA IPC, on GPUs
that are not there, every fourth dies inside a weight sync. Runs are on-policy and in float32, so all metrics that do not depend on
the machine must be equal. It exits with status 1 if another metric differs, or if a process or shared memory remains.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from bench.runs import recipe_command, step_rows

OF_THE_MACHINE = ("time/", "sync/", "memory/", "rollout/tokens_per_second", "rollout/engine_failures")
"""Metrics that differ between any two runs, and the number of faults."""
OF_ROUNDING = ("rollout/logprob_gap", "rollout/mismatch")
"""Metrics of rounding: an engine rounds differently when it processes other completions at the same time."""
ROUNDING = 1e-5
MARK = "BENCH_FAULTS"
"""Environment variable that marks a run's processes."""
STAGES = ("start_weight_update-1", "chunk-1", "chunk-2", "finish_weight_update-1")
"""Moments of a weight sync, as `tests.fake_gpus` names them."""
SLAB = "memfd:policy-weights"
"""Memory file that an engine maps once it is in service."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    kills: int = 10
    """Engines to kill, each in a different step."""
    steps: int = 60
    """Steps of each run, at least kills + 2."""
    transfer: Literal["shared_memory", "nccl", "ipc"] = "shared_memory"
    """How weights get to the engines."""
    seed: int = 0
    """Seeds the choice of steps, moments and victims."""
    folder: Path = Path("runs/faults")
    """Folder of the two runs; the undisturbed one is not repeated."""
    output: Path = Path("bench/results/faults.json")
    """File of the figures."""
    recipe_options: str = "--rollout.num-engines 2 --rollout.max-running 32"
    """Additional options of both runs; short queues at the engines make generation long enough to be hit."""


def main(options: Options) -> None:
    """Makes both runs, prints a table, and writes JSON."""
    folder = options.folder / options.transfer
    undisturbed = folder / "undisturbed"
    if not (undisturbed / "checkpoints" / f"step_{options.steps}").is_dir():
        subprocess.run(command(options, undisturbed), check=True)
    run_dir = folder / f"disturbed-{time.strftime('%Y%m%d-%H%M%S')}"
    before = set(Path("/dev/shm").iterdir())
    environment = {**os.environ, MARK: str(os.getpid())}
    theirs = step_rows(undisturbed)
    run = subprocess.Popen(command(options, run_dir), env=environment)
    seconds = statistics.median(row["time/step"] for row in theirs)
    killed = [kill(run, run_dir, step, seconds, rng) for step, rng in moments(options)]
    status = run.wait()
    time.sleep(2)
    left = [process.name() for process in processes()] + [
        path.name for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith(("psm_", "sem."))
    ]
    ours = step_rows(run_dir)
    differing = sorted({name for a, b in zip(ours, theirs, strict=True) for name in differences(a, b)})
    result = {
        "status": status,
        "kills": killed,
        "engine_failures": ours[-1]["rollout/engine_failures"],
        "metrics_compared": sum(len(compared(row)) for row in ours),
        "metrics_that_differ": differing,
        "left_behind": left,
        "steps_per_minute": {"undisturbed": rate(theirs), "disturbed": rate(ours)},
        "longest_step": max(row["time/step"] for row in ours),
    }
    report(result)
    output = options.output.with_stem(f"{options.output.stem}-{options.transfer}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1))
    # In a broadcast by NCCL the loss of one engine is that of all.
    too_few = result["engine_failures"] < options.kills
    too_many = result["engine_failures"] > options.kills and options.transfer != "nccl"
    if status or differing or left or too_few or too_many:
        sys.exit(1)


def command(options: Options, run_dir: Path) -> list[str]:
    """Returns the command line of a run."""
    words = recipe_command(run_dir, options.steps, options.recipe_options)
    if options.transfer == "shared_memory":
        return words
    folder = fakes_of(run_dir)
    folder.mkdir(parents=True)
    return [sys.executable, "-m", "bench.on_fake_gpus", options.transfer, str(folder), *words[3:]]


def fakes_of(run_dir: Path) -> Path:
    """Returns the folder that steers a run's fake GPUs; it does not exist without them."""
    return run_dir.with_name(f"{run_dir.name}-gpus").resolve()


def moments(options: Options) -> Iterator[tuple[int, random.Random]]:
    """Yields the steps in which to kill, and the generator of the other random choices."""
    rng = random.Random(options.seed)
    for step in sorted(rng.sample(range(2, options.steps), options.kills)):
        yield step, rng


def kill(run: subprocess.Popen[bytes], run_dir: Path, step: int, seconds: float, rng: random.Random) -> str:
    """Kills an engine in a step, at any moment of its usual seconds, and returns a description."""
    wait_for_row(run, run_dir, step - 1)
    folder = fakes_of(run_dir)
    if folder.is_dir() and rng.random() < 0.25:
        stage = rng.choice(STAGES)
        (folder / f"SIGKILL-{stage}").touch()
        return f"step {step}: at {stage}"
    delay = rng.uniform(0.0, seconds)
    time.sleep(delay)
    while not (workers := [process for process in processes() if in_service(process, folder)]):
        assert run.poll() is None, "the run ended before all kills"
        time.sleep(0.05)
    line = [rng.choice(workers)]
    while "EngineActor" not in " ".join(line[-1].cmdline()):
        parent = line[-1].parent()
        assert parent is not None and "raylet" not in parent.name()
        line.append(parent)
    height = rng.randrange(len(line))
    name = line[height].name()
    line[height].kill()
    return f"step {step}: {name} after {delay:.2f} s"


def wait_for_row(run: subprocess.Popen[bytes], run_dir: Path, step: int) -> None:
    """Returns as soon as a step's row is written."""
    metrics = run_dir / "metrics.jsonl"
    while not (metrics.exists() and f'{{"step": {step},' in metrics.read_text()):
        assert run.poll() is None, f"the run ended before step {step}"
        time.sleep(0.01)


def processes() -> list[psutil.Process]:
    """Returns the living processes of the run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(os.getpid()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def in_service(process: psutil.Process, folder: Path) -> bool:
    """Returns True for a worker of an engine that has weights, as the slab in its memory or the fake GPUs' folder shows."""
    if folder.is_dir():
        return (folder / f"connected-{process.pid}").exists()
    try:
        return "VLLM::Worker" in " ".join(process.cmdline()) and SLAB in Path(f"/proc/{process.pid}/maps").read_text()
    except (OSError, psutil.Error):
        return False


def compared(row: dict[str, float]) -> dict[str, float]:
    """Returns the metrics of a row that do not depend on the machine."""
    return {name: value for name, value in row.items() if not name.startswith(OF_THE_MACHINE)}


def differences(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """Returns the metrics that differ between two rows; metrics of rounding may differ by `ROUNDING`."""
    a, b = compared(ours), compared(theirs)
    found = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        bound = ROUNDING if name.startswith(OF_ROUNDING) else 0.0
        if not abs(a[name] - b[name]) <= bound:
            found.append(name)
    return found


def rate(rows: list[dict[str, float]]) -> float:
    """Returns steps per minute."""
    return 60 * (len(rows) - 1) / (rows[-1]["time/elapsed"] - rows[0]["time/elapsed"])


def report(result: dict[str, object]) -> None:
    """Prints the result as a table."""
    table = Table("", "found")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), "\n".join(value) if isinstance(value, list) else str(value))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
