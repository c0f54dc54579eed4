"""Evaluates a checkpoint: avg@K, pass@k and majority@K with intervals, per task and overall; trains nothing.

    python -m recipes.evaluate runs/geometry/checkpoints/step_100 --data geometry_test.jsonl --reward math_answer

    python -m recipes.evaluate Qwen/Qwen3-VL-8B-Thinking --data my_data.py:aime --reward math_answer --samples 32
        --sampling thinking-dense --rollout.gpus-per-engine 1 --rollout.num-engines 8

After an interruption the same command resumes. `python -m rewards.check` reads the answers in samples/ as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl.cli import main
from rl.evaluation.config import SamplingRunConfig


@dataclass(frozen=True, kw_only=True)
class Evaluate(SamplingRunConfig):
    """Evaluation of a checkpoint on held-out prompts."""


def run(config: Evaluate) -> None:
    """Samples, scores and reports."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from rich.console import Console

    from rl.evaluation.report import report_evaluation
    from rl.evaluation.sampling import sample_and_score

    report_evaluation(sample_and_score(config, "evaluate"), Console())


if __name__ == "__main__":
    main(run, Evaluate, __doc__)
