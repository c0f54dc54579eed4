"""Measures how often a checkpoint solves each query, with 16 samples, for recipes.select; trains nothing.

    python -m recipes.measure_pass_rate CHECKPOINT --data train.parquet --reward math_answer
    python -m recipes.measure_pass_rate CHECKPOINT --data train.parquet --reward math_answer --blind

The second command replaces images by grey ones: a query that is still solved does not need its image. After an interruption the
same command resumes and samples no query twice. The file has one line per query: prompt_id, task, row, n, correct, pass_rate,
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
    """Stores the images with the answers, for people and for rewards that use images."""
    output: Path | None = None
    """The file of pass rates, .jsonl or .parquet. Default: pass_rates.jsonl in run_dir."""


def run(config: MeasurePassRate) -> None:
    """Samples, scores and counts."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from rich.console import Console

    from rl.evaluation.report import check_output, report_pass_rates
    from rl.evaluation.sampling import sample_and_score

    check_output(config.output)
    report_pass_rates(sample_and_score(config, "pass_rates"), config.output, Console())


if __name__ == "__main__":
    main(run, MeasurePassRate, __doc__)
