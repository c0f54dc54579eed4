"""Reasoning RL: mathematics, logic and visual grounding, all verified by rules, at a fixed ratio in every minibatch.

Small: sums of handwriting with their terms as reasoning, boxes, and arithmetic in words, with the small policy on two CPU cores.
With a preset: geometry, word problems, logic puzzles and grounding, with a published Qwen3-VL.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rewards import box_iou, by_task, language_matches, math_answer, text_similarity, weighted
from rewards.types import Verifier
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, OptimizerConfig, RolloutConfig
from rl.hardware.presets import PresetConfig
from rollout.tasks.digit_sums import sum_is_right

if TYPE_CHECKING:
    from rollout.data.mixture import Mixture

Split = Literal["train", "test"]

PUZZLES: dict[str, dict[str, int]] = {
    "knights_knaves": {},
    "family_relationships": {},
    "number_sequence": {"max_complexity": 2},  # sequences of three operations take 60 ms each to draw
}
"""Logic tasks of reasoning-gym with one answer each, a word or two, and their options."""


@dataclass(frozen=True, kw_only=True)
class ReasoningRl(PresetConfig):
    """SAPO on verifiable reasoning."""

    run_dir: Path = Path("runs/reasoning_rl")
    """Folder for config, metrics, samples and checkpoints."""
    steps: int = 150
    """Steps: each one generates, scores, learns and syncs."""
    cold_start: ColdStartConfig = ColdStartConfig(updates=500)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=300)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=24, max_model_len=160)
    eval: EvalConfig = EvalConfig(num_prompts=800, correct_at=0.5)  # a box with an IoU of .5 is correct


ACCURACY = by_task(
    {
        "digit_sums": sum_is_right,
        "box": box_iou,
        "chain_sum": math_answer,
        "geometry3k": math_answer,
        "gsm8k": math_answer,
        "refcoco": box_iou,
        **dict.fromkeys(PUZZLES, text_similarity(threshold=1.0)),
    }
)


def with_language() -> Verifier:
    """Accuracy, minus a penalty for reasoning in another language than the question's (arXiv 2511.21631)."""
    return weighted({"accuracy": (ACCURACY, 1.0), "language": (language_matches, 0.1)})


def small_tasks(split: Split) -> Mixture:
    """Half sums of handwriting, a quarter boxes, a quarter arithmetic without a picture."""
    from rollout.data.mixture import mixture
    from rollout.data.prompts import prompts_from
    from rollout.tasks import digit_sums, scenes, text_tasks

    arithmetic = text_tasks.text_task("chain_sum", split, min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    return mixture(
        {
            "digit_sums": (prompts_from(digit_sums.digit_sums(split), digit_sums.to_prompt), 2),
            "box": (prompts_from(scenes.scenes(split, "box"), scenes.box_prompt), 1),
            "chain_sum": (prompts_from(arithmetic, text_tasks.to_prompt), 1),
        }
    )


def public_tasks(config: ReasoningRl, split: Split) -> Mixture:
    """Three parts geometry, two word problems, two grounding, and one of each kind of puzzle."""
    from rollout.data.datasets import read_rows
    from rollout.data.layouts import geometry3k, gsm8k, reasoning_gym, refcoco
    from rollout.data.mixture import mixture
    from rollout.data.prompts import prompts_from
    from rollout.tasks.text_tasks import text_task

    problems = read_rows(config.source("hiyouga/geometry3k"), split)
    words = read_rows(config.source("openai/gsm8k"), split, subset="main")
    # RefCOCO is published for evaluation alone: what one of its splits teaches, the other measures.
    boxes = read_rows(config.source("lmms-lab/RefCOCO"), "val" if split == "train" else "testA")
    puzzles = {
        name: (prompts_from(text_task(name, split, num_prompts=1000, **options), reasoning_gym), 1)
        for name, options in PUZZLES.items()
    }
    return mixture(
        {
            "geometry3k": (prompts_from(problems, geometry3k), 3),
            "gsm8k": (prompts_from(words, gsm8k), 2),
            "refcoco": (prompts_from(boxes, refcoco), 2),
            **puzzles,
        }
    )


def run(config: ReasoningRl) -> None:
    """Cold start of the small policy, then SAPO."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy

    small = config.preset == "small"
    splits: tuple[Split, Split] = ("train", "test")
    tasks, held_out = (small_tasks(split) if small else public_tasks(config, split) for split in splits)
    config = with_start_policy(config, tasks)
    print_result(train(config, prompts=tasks, reward=ACCURACY if small else with_language(), eval_prompts=held_out))


if __name__ == "__main__":
    main(run, ReasoningRl, __doc__)
