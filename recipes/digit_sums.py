"""Trains a small Qwen3-VL to add up handwritten digits: `3+5+9=17`. The main job, on two CPU cores in minutes.

The cold start trains the answer format, SAPO the reading. Training never uses the held-out digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rewards import Score
from rl.cli import main
from rl.config import EvalConfig, OptimizerConfig, RolloutConfig, SmallRecipe
from rollout import Completion, Prompt


@dataclass(frozen=True, kw_only=True)
class DigitSums(SmallRecipe):
    """SAPO on sums of handwritten digits."""

    run_dir: Path = Path("runs/digit_sums")
    """Folder for config, metrics, samples and checkpoints."""
    steps: int = 200
    """Steps: each one generates, scores, learns and syncs."""
    num_digits: int = 3
    """Digits in a picture."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=400)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=16, max_model_len=128)
    eval: EvalConfig = EvalConfig(num_prompts=400)


def sum_is_right(prompt: Prompt, completion: Completion) -> Score:
    """1 if the number after the last `=` is the sum; the terms are logged and not rewarded."""
    terms, _, total = completion.text.rpartition("=")
    expected_terms, _, expected = prompt.answer.rpartition("=")
    return Score(reward=float(total.strip() == expected), parts={"terms": float(terms == expected_terms)})


def run(config: DigitSums) -> None:
    """Cold start, then SAPO."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy
    from rollout.data.prompts import prompts_from
    from rollout.tasks.digit_sums import digit_sums, to_prompt

    prompts = prompts_from(digit_sums("train", num_digits=config.num_digits), to_prompt)
    held_out = prompts_from(digit_sums("test", num_digits=config.num_digits, num_prompts=2000), to_prompt)
    config = with_start_policy(config, prompts)
    print_result(train(config, prompts=prompts, reward=sum_is_right, eval_prompts=held_out))


if __name__ == "__main__":
    main(run, DigitSums, __doc__)
