"""General RL: several tasks at once, each with its own verifier, at a fixed ratio in every minibatch.

Small: counting, boxes, clock faces and sums of handwriting, with the small policy on two CPU cores. With a preset: charts,
grounding, clocks and counting, with a published Qwen3-VL. Penalties: loops, length (soft overlong punishment), another language
than the question's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rewards import (
    box_iou,
    by_task,
    clock_time,
    count,
    first_readable,
    language_matches,
    length_penalty,
    numeric,
    repetition_penalty,
    text_similarity,
    weighted,
)
from rewards.types import Verifier
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, OptimizerConfig, RolloutConfig
from rl.hardware.presets import PresetConfig
from rollout.tasks.digit_sums import sum_is_right

if TYPE_CHECKING:
    from rollout.data.mixture import Mixture

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class GeneralRl(PresetConfig):
    """SAPO on a mixture of tasks."""

    run_dir: Path = Path("runs/general_rl")
    """Folder for config, metrics, samples and checkpoints."""
    steps: int = 250
    """Steps: each one generates, scores, learns and syncs."""
    cold_start: ColdStartConfig = ColdStartConfig(updates=1500)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=300)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=24, max_model_len=128)
    eval: EvalConfig = EvalConfig(num_prompts=800, correct_at=0.5)  # a box with an IoU of .5 is correct


ACCURACY = by_task(
    {
        "count": count,
        "box": box_iou,
        "clock": clock_time,
        "digit_sums": sum_is_right,
        "chartqa": first_readable(numeric(relative=0.05), text_similarity(threshold=1.0)),
        "refcoco": box_iou,
    }
)


def with_penalties(max_tokens: int) -> Verifier:
    """Accuracy, minus penalties for repetition, length (soft overlong punishment) and another language than the question's."""
    return weighted(
        {
            "accuracy": (ACCURACY, 1.0),
            "language": (language_matches, 0.1),
            "loops": (repetition_penalty, 0.5),
            "length": (length_penalty(max_tokens=max_tokens, buffer=max_tokens // 8), 0.5),
        }
    )


def small_tasks(split: Split) -> Mixture:
    """Four tasks, a quarter each: two of the eight prompts of a minibatch."""
    from rollout.data.mixture import mixture
    from rollout.data.prompts import prompts_from
    from rollout.tasks import clock_faces, digit_sums, scenes

    return mixture(
        {
            "count": (prompts_from(scenes.scenes(split, "count"), scenes.count_prompt), 1),
            "box": (prompts_from(scenes.scenes(split, "box"), scenes.box_prompt), 1),
            "clock": (prompts_from(clock_faces.clock_faces(split), clock_faces.to_prompt), 1),
            "digit_sums": (prompts_from(digit_sums.digit_sums(split, num_digits=2), digit_sums.to_prompt), 1),
        }
    )


def public_tasks(config: GeneralRl, split: Split) -> Mixture:
    """Half charts, a quarter boxes, and a quarter against wrong priors: clock faces and crowds of shapes."""
    from rollout.data.datasets import read_rows
    from rollout.data.layouts import chartqa, refcoco
    from rollout.data.mixture import mixture
    from rollout.data.prompts import prompts_from
    from rollout.tasks import clock_faces, scenes

    charts = read_rows(config.source("HuggingFaceM4/ChartQA"), split)
    # RefCOCO is published for evaluation only: one of its splits is for training, the other for evaluation.
    boxes = read_rows(config.source("lmms-lab/RefCOCO"), "val" if split == "train" else "testA")
    return mixture(
        {
            "chartqa": (prompts_from(charts, chartqa), 4),
            "refcoco": (prompts_from(boxes, refcoco), 2),
            "clock": (prompts_from(clock_faces.clock_faces(split, minutes=5), clock_faces.to_prompt), 1),
            "count": (prompts_from(scenes.scenes(split, "count"), scenes.count_prompt), 1),
        }
    )


def run(config: GeneralRl) -> None:
    """Cold start of the small policy, then SAPO."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy

    small = config.preset == "small"
    splits: tuple[Split, Split] = ("train", "test")
    tasks, held_out = (small_tasks(split) if small else public_tasks(config, split) for split in splits)
    config = with_start_policy(config, tasks)
    reward = ACCURACY if small else with_penalties(config.rollout.max_tokens)
    print_result(train(config, prompts=tasks, reward=reward, eval_prompts=held_out))


if __name__ == "__main__":
    main(run, GeneralRl, __doc__)
