"""Does it pay to select? Measure pass rates, select, then train on what was selected and on everything, with equal steps.

    python -m bench.selection --steps 150 --seeds 0 1

The queries are what a raw set is: of seven, two are solved already (one digit), two have the reference of another query, one writes
the sum into its question, and two are sums of three handwritten digits as they should be. Held out are sums of three digits, and of
one, in other handwriting. Every run starts from the same cold start; the table has what is solved at the end, as means over seeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from rl import TrainConfig, train
from rl.config import ColdStartConfig, EvalConfig, LearnerConfig, OptimizerConfig, RolloutConfig
from rl.run_dir.tracker import read_metrics
from rl.sft import cold_start
from rollout import Prompt
from rollout.data.prompts import Prompts, column_mapping, prompts_from
from rollout.tasks.digit_sums import digit_sums, sum_is_right

KINDS = {"known": 1, "known too": 1, "mislabelled": 3, "mislabelled too": 3, "told": 3, "sums": 3, "more sums": 3}
"""Kinds of queries, and their digits."""
CLEAN = ("known", "told", "sums")
HELD_OUT = ("known", "sums")
ENGINE = RolloutConfig(dtype="float32", max_tokens=24, max_model_len=128, threads_per_engine=2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    steps: int = 150
    """Steps of each run."""
    seeds: tuple[int, ...] = (0,)
    """Each of which makes a run with all queries and one with the selected."""
    updates: int = 250
    """Updates of the cold start."""
    folder: Path = Path("runs/selection")
    """Where everything goes; what is there already is not repeated."""
    output: Path = Path("bench/results/selection.json")
    """Where the figures go."""


def queries(
    split: Literal["train", "test"] = "train", kinds: Sequence[str] = tuple(KINDS), num_each: int = 200
) -> Prompts:
    """Every kind in turn; a prompt's task is its kind."""
    sums = {
        kind: digit_sums(split, num_digits=KINDS[kind], num_prompts=num_each, seed=number)
        for number, kind in enumerate(KINDS)
    }
    as_prompt = column_mapping(id="id", task_column="kind")

    def to_prompt(place: tuple[str, int]) -> Prompt:
        kind, row = place
        shown = sums[kind][row]
        question = f"sum? {shown['sum']}" if kind == "told" else "sum?"
        answer = sums[kind][(row + 1) % num_each]["answer"] if "mislabelled" in kind else shown["answer"]
        return as_prompt({**shown, "id": f"{kind}-{row}", "question": question, "answer": answer, "kind": kind})

    return prompts_from([(kind, row) for row in range(num_each) for kind in kinds], to_prompt)


def main(options: Options) -> None:
    """Measures, selects, trains, prints a table, writes JSON."""
    policy = cold_start(
        ColdStartConfig(updates=options.updates, cache_dir=options.folder / "cold_start"),
        queries(kinds=CLEAN, num_each=4000),
    )
    selection = select(options, policy)
    runs = {
        (name, seed): train_on(options, policy, chosen, seed)
        for seed in options.seeds
        for name, chosen in (("all queries", None), ("selected", selection))
    }
    figures = {"cold start": held_out(read_metrics(runs["selected", options.seeds[0]])[0])}
    for name in ("all queries", "selected"):
        rows = [read_metrics(runs[name, seed]) for seed in options.seeds]
        found = [held_out(each[-1]) | {"groups to learn from": learnt_from(each)} for each in rows]
        figures[name] = {figure: fmean(each[figure] for each in found) for figure in found[0]}
    table = Table("", *figures, title=f"held out, after {options.steps} steps, seeds {options.seeds}")
    for figure in figures["selected"]:
        table.add_row(figure, *(f"{each[figure]:.3f}" if figure in each else "" for each in figures.values()))
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    chosen = json.loads(Path(selection).with_name("report.json").read_text())
    options.output.write_text(json.dumps({"figures": figures, "selection": chosen}, indent=1))


def select(options: Options, policy: Path) -> str:
    """The three commands of a user; what was measured already is not asked again."""
    folder = options.folder.absolute()
    rates = {name: folder / f"{name}.jsonl" for name in ("seeing", "blind")}
    data = f"--data {Path(__file__).absolute()}:queries"
    for name, file in rates.items():
        sizes = (
            "--rollout.dtype float32 --rollout.max-tokens 24 --rollout.max-model-len 128 --rollout.threads-per-engine 2"
        )
        chosen = f"{policy} {data} --reward {Path(__file__).absolute()}:sum_is_right {sizes} --no-pictures"
        command(
            "measure_pass_rate", f"{chosen} --output {file} --run-dir {folder / name}" + " --blind" * (name == "blind")
        )
    command(
        "select",
        f"{data} --pass-rates {rates['seeing']} --blind-pass-rates {rates['blind']} --run-dir {folder / 'chosen'}",
    )
    return str(folder / "chosen" / "selected.jsonl")


def command(recipe: str, words: str) -> None:
    """Runs a recipe in a process of its own."""
    subprocess.run([sys.executable, "-m", f"recipes.{recipe}", *words.split()], check=True)


def train_on(options: Options, policy: Path, selection: str | None, seed: int) -> Path:
    """A run on all queries, or the selected; returns its folder."""
    run_dir = options.folder / f"{'selected' if selection else 'all'}-{seed}"
    config = TrainConfig(
        model=str(policy),
        run_dir=run_dir,
        steps=options.steps,
        seed=seed,
        selection=selection,
        wandb="disabled",
        resume="auto",
        optimizer=OptimizerConfig(learning_rate=1e-4, decay_updates=4 * options.steps),
        rollout=ENGINE,
        learner=LearnerConfig(dtype="float32", threads=2),
        eval=EvalConfig(num_prompts=600, num_samples=4),
    )
    train(config, prompts=queries(), reward=sum_is_right, eval_prompts=queries("test", HELD_OUT, 300))
    return run_dir


def held_out(row: dict[str, Any]) -> dict[str, float]:
    """What is solved of all kinds, and of each."""
    kinds = {name.split("/")[1]: value for name, value in row.items() if name.endswith("/avg")}
    return {"greedy": row["eval/greedy"], "sampled": row["eval/sampled"], **dict(sorted(kinds.items()))}


def learnt_from(rows: list[dict[str, Any]]) -> float:
    """The share of groups whose rewards differ, over all steps."""
    return 1 - fmean(row["rollout/groups_without_variance"] for row in rows if row["step"])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
