"""Teaches a small Qwen3-VL to answer questions about a coloured shape: "what color is the triangle?" → `blue`.

The questions are balanced: their wording gives nothing away, as the blind control (grey pictures) confirms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rewards import exact
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, OptimizerConfig, RolloutConfig, SmallRecipe


@dataclass(frozen=True, kw_only=True)
class EasyVqa(SmallRecipe):
    """SAPO on easy-VQA."""

    run_dir: Path = Path("runs/easy_vqa")
    """Where config, metrics, samples and checkpoints go."""
    steps: int = 150
    """Steps: each one generates, scores, learns and syncs."""
    questions: Literal["color_and_shape", "yes_no_balanced", "mixed"] = "color_and_shape"
    """Guessing unseen is right in 0.23 of color_and_shape, 0.50 of yes_no_balanced, 0.36 of mixed."""
    cold_start: ColdStartConfig = ColdStartConfig(updates=220)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=300)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=12, max_model_len=128)
    eval: EvalConfig = EvalConfig(num_prompts=400)


def run(config: EasyVqa) -> None:
    """Cold start, then SAPO."""
    # Imported late: `--help` and a mistyped option need not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy
    from rollout.data.prompts import prompts_from
    from rollout.tasks.easy_vqa import easy_vqa, to_prompt

    prompts = prompts_from(easy_vqa("train", questions=config.questions), to_prompt)
    held_out = prompts_from(easy_vqa("test", questions=config.questions), to_prompt)
    config = with_start_policy(config, prompts)
    print_result(train(config, prompts=prompts, reward=exact, eval_prompts=held_out))


if __name__ == "__main__":
    main(run, EasyVqa, __doc__)
