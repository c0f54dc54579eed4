"""Trains a small Qwen3-VL to answer questions about a coloured shape: "what color is the triangle?" → `blue`.

The questions are balanced: the blind control (grey images) confirms that their wording does not give the answer.
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
    """Folder for config, metrics, samples and checkpoints."""
    steps: int = 150
    """Steps: each one generates, scores, learns and syncs."""
    questions: Literal["color_and_shape", "yes_no_balanced", "mixed"] = "color_and_shape"
    """Kind of questions. Accuracy without the image: 0.23 for color_and_shape, 0.50 for yes_no_balanced, 0.36 for mixed."""
    cold_start: ColdStartConfig = ColdStartConfig(updates=220)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=300)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=12, max_model_len=128)
    eval: EvalConfig = EvalConfig(num_prompts=400)


def run(config: EasyVqa) -> None:
    """Cold start, then SAPO."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
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
