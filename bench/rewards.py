"""Measures scores per second of every verifier, and the cost of calling it in a separate process that may be killed.

    python -m bench.rewards

Each verifier scores the same number of right and wrong completions of various lengths, once in this process and once through the
RewardRunner, as in a run. The cost of isolation is the difference for a reward that returns at once, per call and worker.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from rewards import Verifier
from rewards.workers.call import score_completions
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group, Prompt
from tests.rewards.cases import CASES, Case

PROSE = "First we look at the picture and count what is there. Then we compare it with the question, step by step. "


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    completions: int = 10_000
    """Completions over all verifiers."""
    group_size: int = 16
    """Completions per prompt."""
    repeats: int = 3
    """Times that each verifier scores everything in this process, of which the quickest counts: others may share the core."""
    workers: int = 2
    """Processes that score."""
    output: Path = Path("bench/results/rewards.json")
    """File of the figures."""


def main(options: Options) -> None:
    """Measures, prints a table, and writes JSON."""
    per_verifier = options.completions // len(CASES)
    rows = {
        name: measure(case.verifier, mixed(case, per_verifier, options.group_size), options)
        for name, case in CASES.items()
    }
    at_once = measure(nothing, mixed(CASES["exact"], per_verifier, options.group_size), options)
    overhead = 1e3 * options.workers * (1 / at_once["isolated"] - 1 / at_once["direct"] / options.workers)
    table = Table(
        "verifier", "scores/s, this process", f"scores/s, {options.workers} workers", "paid", title="Verifiers"
    )
    for name, row in {**rows, "returns at once": at_once}.items():
        table.add_row(name, f"{row['direct']:,.0f}", f"{row['isolated']:,.0f}", f"{row['paid']:.2f}")
    seconds = import_seconds()
    Console().print(table, f"isolation: {overhead:.3f} ms for each call; import rewards: {1e3 * seconds:.0f} ms")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"verifiers": rows, "returns at once": at_once, "overhead_ms": overhead}, indent=1)
    )


def nothing(prompt: Prompt, completion: Completion) -> float:
    """Returns 0 at once."""
    return 0.0


def import_seconds() -> float:
    """Returns the seconds of `import rewards` in a new process: the smallest of ten, since others may share the core."""
    code = "import time; start = time.perf_counter(); import rewards; print(time.perf_counter() - start)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(10))


def mixed(case: Case, number: int, group_size: int) -> list[Group]:
    """Returns groups of completions; half end in the right answer, and half begin with up to 4,000 characters of thoughts."""
    rng = random.Random(0)
    groups = []
    for start in range(0, number, group_size):
        completions = []
        for i in range(start, min(start + group_size, number)):
            answer = case.right if rng.random() < 0.5 else f"{case.right[: len(case.right) // 2]} {i}"
            thoughts = (
                f"<think>{PROSE * rng.randrange(40)}</think>"
                if rng.random() < 0.5 and "think" not in case.right
                else ""
            )
            completions.append(Completion(text=f"{thoughts}{answer}", token_ids=np.zeros(len(answer), np.int32)))
        groups.append(Group(prompt=case.prompt, prompt_token_ids=np.zeros(1, np.int32), completions=completions))
    return groups


def measure(verifier: Verifier, groups: list[Group], options: Options) -> dict[str, float]:
    """Returns scores per second of this process's time and in workers, and the share of completions with a reward above 0."""
    number = sum(len(group.completions) for group in groups)
    score_completions(verifier, groups[0].prompt, groups[0].completions[:1])  # imports
    seconds = []
    for _ in range(options.repeats):
        start = time.process_time()
        scores = [score for group in groups for score in score_completions(verifier, group.prompt, group.completions)]
        seconds.append(time.process_time() - start)
    direct = number / min(seconds)
    assert not [score for score in scores if score.error is not None]
    with RewardRunner(verifier, num_workers=options.workers) as runner:
        runner.score(groups[: 2 * options.workers])
        start = time.perf_counter()
        runner.score(groups)
        isolated = number / (time.perf_counter() - start)
    return {"direct": direct, "isolated": isolated, "paid": sum(score.reward > 0 for score in scores) / number}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
