"""Teaches a small Qwen3-VL to think with images: it must ask for a part of the picture, enlarged, to read what is there.

A picture of 128 × 128 is shown at 64 × 64, where the fine texture that a digit is written in becomes plain grey. The policy may
ask for one of four tiles at full size. The cold start shows the tool and the digits, and looks anywhere or nowhere; SAPO teaches to
look, and where.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rewards import Score
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, OptimizerConfig, RolloutConfig, SmallRecipe
from rollout import Completion, Prompt


@dataclass(frozen=True, kw_only=True)
class Zoom(SmallRecipe):
    """SAPO on digits that must be looked at closely."""

    run_dir: Path = Path("runs/zoom")
    """Where config, metrics, samples and checkpoints go."""
    steps: int = 100
    """Steps: each one generates, scores, learns and syncs."""
    cold_start: ColdStartConfig = ColdStartConfig(max_image_pixels=64 * 64)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4, decay_updates=200)
    rollout: RolloutConfig = RolloutConfig(
        dtype="float32",
        max_tokens=32,
        max_turn_tokens=4,
        max_turns=2,
        max_images=2,
        max_image_pixels=64 * 64,
        max_model_len=128,
    )
    eval: EvalConfig = EvalConfig(num_prompts=400)


def digit_is_right(prompt: Prompt, completion: Completion) -> Score:
    """1 if the last turn is the digit; whether the policy looked, and at the right tile, is shown and not rewarded."""
    looks = [turn.text for turn in completion.turns or () if turn.observation is not None]
    parts = {"looked": float(bool(looks)), "looked_right": float(f"z{prompt.columns['tile']}" in looks)}
    return Score(reward=float(completion.text == prompt.answer), parts=parts)


def run(config: Zoom) -> None:
    """Cold start, then SAPO."""
    # Imported late: `--help` and a mistyped option need not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy
    from rollout.data.prompts import prompts_from
    from rollout.tasks.fine_print import fine_print, half_informed, magnifier, to_prompt

    prompts = prompts_from(fine_print("train"), to_prompt)
    held_out = prompts_from(fine_print("test", num_prompts=2000), to_prompt)
    config = with_start_policy(config, prompts, half_informed)
    print_result(train(config, prompts=prompts, reward=digit_is_right, eval_prompts=held_out, environment=magnifier))


if __name__ == "__main__":
    main(run, Zoom, __doc__)
