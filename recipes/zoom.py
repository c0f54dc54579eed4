"""Trains a small Qwen3-VL to think with images: it must request an enlarged part of the image to read a digit.

An image of 128 × 128 pixels is shown at 64 × 64, where the digit's fine texture becomes plain grey. The policy may request one of
four tiles at full size. The cold start demonstrates the tool and the digits with random requests or none; SAPO trains the right
request.
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
    """SAPO on digits in fine print."""

    run_dir: Path = Path("runs/zoom")
    """Folder for config, metrics, samples and checkpoints."""
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
    """1 if the last turn is the digit; tool calls, and calls for the right tile, are logged and not rewarded."""
    looks = [turn.text for turn in completion.turns or () if turn.observation is not None]
    parts = {"looked": float(bool(looks)), "looked_right": float(f"z{prompt.columns['tile']}" in looks)}
    return Score(reward=float(completion.text == prompt.answer), parts=parts)


def run(config: Zoom) -> None:
    """Cold start, then SAPO."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
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
