"""Kills engines at random during generation, and compares the run with an undisturbed one.

    python -m bench.faults --kills 10

SIGKILL goes to vLLM's worker, vLLM's core or the actor above both, of an engine that is generating. Runs are on-policy and in
float32, so all metrics that do not depend on the machine must be equal. It exits with status 1 if another metric differs, or if a
process or shared memory remains.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from bench.runs import recipe_command, recipe_run, step_rows

OF_THE_MACHINE = ("time/", "sync/", "memory/", "rollout/tokens_per_second", "rollout/engine_failures")
"""Metrics that differ between any two runs, and the number of faults."""
OF_ROUNDING = ("rollout/logprob_gap", "rollout/mismatch")
"""Metrics of rounding: an engine rounds differently when it processes other completions at the same time."""
ROUNDING = 1e-5
MARK = "BENCH_FAULTS"
"""Environment variable that marks a run's processes."""
KINDS = ("vLLM's worker", "vLLM's core", "the actor")
"""An engine's processes, each the child of the next."""
SLAB = "memfd:policy-weights"
"""Memory file that an engine maps once it is in service."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    kills: int = 10
    """Engines to kill, each in a different step."""
    steps: int = 60
    """Steps of each run, at least kills + 2."""
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
    undisturbed = recipe_run(options.folder / "undisturbed", options.steps, options.recipe_options)
    run_dir = options.folder / f"disturbed-{time.strftime('%Y%m%d-%H%M%S')}"
    before = set(Path("/dev/shm").iterdir())
    environment = {**os.environ, MARK: str(os.getpid())}
    run = subprocess.Popen(recipe_command(run_dir, options.steps, options.recipe_options), env=environment)
    killed = [kill(run, run_dir, step, rng) for step, rng in moments(options)]
    status = run.wait()
    time.sleep(2)
    left = [process.name() for process in processes()] + [
        path.name for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith(("psm_", "sem."))
    ]
    ours, theirs = step_rows(run_dir), step_rows(undisturbed)
    differing = sorted({name for a, b in zip(ours, theirs, strict=True) for name in differences(a, b)})
    result = {
        "status": status,
        "kills": killed,
        "engine_failures": ours[-1]["rollout/engine_failures"],
        "metrics_compared": sum(len(compared(row)) for row in ours),
        "metrics_that_differ": differing,
        "left_behind": left,
        "steps_per_minute": {"undisturbed": rate(theirs), "disturbed": rate(ours)},
    }
    report(result)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1))
    if status or differing or left or result["engine_failures"] != options.kills:
        sys.exit(1)


def moments(options: Options) -> Iterator[tuple[int, random.Random]]:
    """Yields the steps in which to kill, and the generator of the other random choices."""
    rng = random.Random(options.seed)
    for step in sorted(rng.sample(range(2, options.steps), options.kills)):
        yield step, rng


def kill(run: subprocess.Popen[bytes], run_dir: Path, step: int, rng: random.Random) -> str:
    """Kills a generating engine in a step, or in the next step that has one, and returns a description."""
    wait_for_row(run, run_dir, step - 1)
    time.sleep(rng.uniform(0.0, 0.2))
    height = rng.randrange(len(KINDS))
    while True:
        assert run.poll() is None, "the run ended before all kills"
        workers = [process for process in processes() if in_service(process)]
        rng.shuffle(workers)
        if victim := next((worker for worker in workers if at_work(worker)), None):
            break
    for _ in range(height):
        victim = victim.parent()
        assert victim is not None
    victim.kill()
    return f"step {step}: {KINDS[height]} {victim.pid}"


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


def in_service(process: psutil.Process) -> bool:
    """Returns True for a worker of an engine that has weights; a starting engine does not generate."""
    try:
        return "VLLM::Worker" in " ".join(process.cmdline()) and SLAB in Path(f"/proc/{process.pid}/maps").read_text()
    except (OSError, psutil.Error):
        return False


def at_work(process: psutil.Process) -> bool:
    """Returns True for a process that is computing. Right after a step's row is written, this is generation."""
    try:
        start = sum(process.cpu_times()[:2])
        time.sleep(0.03)
        return sum(process.cpu_times()[:2]) - start >= 0.02
    except psutil.NoSuchProcess:
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
