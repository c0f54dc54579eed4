"""Measures the gain of selecting prompts: pass rates, selection, then training on the selection and on all, with equal steps.

    python -m bench.selection --steps 150 --seeds 0 1

The queries resemble a raw set. Of seven queries, two are solved already (one digit), two have the reference of another query, one
has the sum in its question, and two are good: sums of three handwritten digits. Held out are sums of three digits and of one
digit, in other handwriting. Every run starts from the same cold start. The table has the final scores, as means over seeds.
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
from rollout import Completion, Prompt
from rollout.data.prompts import Prompts, column_mapping, prompts_from
from rollout.tasks.digit_sums import digit_sums

KINDS = {"known": 1, "known too": 1, "mislabelled": 3, "mislabelled too": 3, "told": 3, "sums": 3, "more sums": 3}
"""Kind of query → number of digits."""
CLEAN = ("known", "told", "sums")
HELD_OUT = ("known", "sums")
ENGINE = RolloutConfig(dtype="float32", max_tokens=24, max_model_len=128, threads_per_engine=2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    steps: int = 150
    """Steps of each run."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each makes a run with all queries and one with the selection."""
    updates: int = 250
    """Updates of the cold start."""
    folder: Path = Path("runs/selection")
    """Folder of all results; existing ones are not repeated."""
    output: Path = Path("bench/results/selection.json")
    """File of the figures."""


def queries(
    split: Literal["train", "test"] = "train", kinds: Sequence[str] = tuple(KINDS), num_each: int = 200
) -> Prompts:
    """Returns queries of every kind in turn; a prompt's task is its kind."""
    sums = {
        kind: digit_sums(split, num_digits=KINDS[kind], num_prompts=num_each, seed=number)
        for number, kind in enumerate(KINDS)
    }
    as_prompt = column_mapping(id="id", task_column="kind")

    def to_prompt(place: tuple[str, int]) -> Prompt:
        kind, row = place
        example = sums[kind][row]
        question = f"sum? {example['sum']}" if kind == "told" else "sum?"
        answer = sums[kind][(row + 1) % num_each]["answer"] if "mislabelled" in kind else example["answer"]
        return as_prompt({**example, "id": f"{kind}-{row}", "question": question, "answer": answer, "kind": kind})

    return prompts_from([(kind, row) for row in range(num_each) for kind in kinds], to_prompt)


def sum_is_right(prompt: Prompt, completion: Completion) -> float:
    """Returns 1 if the number after the last `=` is the sum, else 0."""
    return float(completion.text.rpartition("=")[2].strip() == prompt.answer.rpartition("=")[2])


def main(options: Options) -> None:
    """Measures, selects, trains, prints a table, and writes JSON."""
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
        found = [held_out(each[-1]) | {"groups to learn from": useful_groups(each)} for each in rows]
        figures[name] = {figure: fmean(each[figure] for each in found) for figure in found[0]}
    table = Table("", *figures, title=f"held out, after {options.steps} steps, seeds {options.seeds}")
    for figure in figures["selected"]:
        table.add_row(figure, *(f"{each[figure]:.3f}" if figure in each else "" for each in figures.values()))
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    chosen = json.loads(Path(selection).with_name("report.json").read_text())
    options.output.write_text(json.dumps({"figures": figures, "selection": chosen}, indent=1))


def select(options: Options, policy: Path) -> str:
    """Runs a user's three commands, and returns the selection; finished measurements are not repeated."""
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
    """Runs a recipe in a separate process."""
    subprocess.run([sys.executable, "-m", f"recipes.{recipe}", *words.split()], check=True)


def train_on(options: Options, policy: Path, selection: str | None, seed: int) -> Path:
    """Trains on all queries or on a selection, and returns the run's folder."""
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
    """Returns the scores over all kinds, and of each kind."""
    kinds = {name.split("/")[1]: value for name, value in row.items() if name.endswith("/avg")}
    return {"greedy": row["eval/greedy"], "sampled": row["eval/sampled"], **dict(sorted(kinds.items()))}


def useful_groups(rows: list[dict[str, Any]]) -> float:
    """Returns the share of groups with different rewards, over all steps."""
    return 1 - fmean(row["rollout/groups_without_variance"] for row in rows if row["step"])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
