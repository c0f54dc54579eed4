"""Measures how often a checkpoint solves each query, 16 samples each: what to train on is selected by it; trains nothing.

    python -m recipes.measure_pass_rate CHECKPOINT --data train.parquet --reward math_answer
    python -m recipes.measure_pass_rate CHECKPOINT --data train.parquet --reward math_answer --blind

The second command shows grey pictures: a query that is solved all the same needs no eyes. Interrupted, the same command goes on
where it was, and asks no query twice. The file has a line for each query: prompt_id, task, row, n, correct, pass_rate,
mean_reward, mean_tokens, truncated, without_verdict, blind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl.cli import main
from rl.evaluation.config import SamplingRunConfig


@dataclass(frozen=True, kw_only=True)
class MeasurePassRate(SamplingRunConfig):
    """Pass rates of queries."""

    split: str = "train"
    """The split of a dataset from the hub or a folder."""
    pictures: bool = False
    """Keeps the pictures beside the answers, for people and for rewards that look at them."""
    output: Path | None = None
    """The file of pass rates, .jsonl or .parquet. Default: pass_rates.jsonl in run_dir."""


def run(config: MeasurePassRate) -> None:
    """Asks, scores, and counts."""
    # Imported late: `--help` and a mistyped option need not wait for torch and Ray.
    from rich.console import Console

    from rl.evaluation.report import check_output, report_pass_rates
    from rl.evaluation.sampling import sample_and_score

    check_output(config.output)
    report_pass_rates(sample_and_score(config, "pass_rates"), config.output, Console())


if __name__ == "__main__":
    main(run, MeasurePassRate, __doc__)
