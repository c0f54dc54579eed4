"""On-policy distillation: a small student samples, and a better teacher gives its log-probability of every token.

Training lowers the reverse KL to the teacher on the student's own responses. Rewards are only measured, unless
--teacher.reward-weight is set. Small: sums of handwritten digits, with a teacher that had four times the student's supervised
updates. With a preset: geometry, word problems and charts. The teacher is Qwen3-VL-32B, or the largest size for 32B, on the last
machine's last GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from rewards import by_task, first_readable, math_answer, numeric, text_similarity
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, OptimizerConfig, RolloutConfig, TeacherConfig
from rl.hardware.presets import PRESETS, Preset, PresetConfig
from rollout.tasks.digit_sums import sum_is_right

if TYPE_CHECKING:
    from rollout.data.prompts import Rows

Split = Literal["train", "test"]

LARGEST = PRESETS["235B-A22B"]


@dataclass(frozen=True, kw_only=True)
class Distill(PresetConfig):
    """On-policy distillation."""

    model: str = "cold-start"
    """The student: a folder or hub name; cold-start makes and trains the small policy first."""
    run_dir: Path = Path("runs/distill")
    """Folder for config, metrics, samples and checkpoints."""
    steps: int = 100
    """Steps: each one generates, scores, learns and syncs."""
    num_digits: int = 3
    """Small: digits in a picture."""
    teacher_start: ColdStartConfig = ColdStartConfig(updates=1000)
    teacher: TeacherConfig = TeacherConfig(model="cold-start", dtype="float32")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=400)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=16, max_model_len=128)
    eval: EvalConfig = EvalConfig(num_prompts=400)

    def of_size(self, preset: Preset) -> Self:
        """A published size with a teacher on its own GPUs; the largest size has none."""
        chosen = replace(super().of_size(preset), group_size=4, teacher=TeacherConfig())
        if preset is LARGEST:
            return chosen
        larger, gpus = (LARGEST, 8) if preset is PRESETS["32B"] else (PRESETS["32B"], 2)
        return replace(chosen, teacher=TeacherConfig(model=larger.model, gpus_per_engine=gpus))


PUBLIC_TASKS = by_task(
    {
        "geometry3k": math_answer,
        "gsm8k": math_answer,
        "chartqa": first_readable(numeric(relative=0.05), text_similarity(threshold=1.0)),
    }
)


def small_task(config: Distill, split: Split) -> Rows:
    """Sums of handwritten digits."""
    from rollout.data.prompts import prompts_from
    from rollout.tasks.digit_sums import digit_sums, to_prompt

    return prompts_from(digit_sums(split, num_digits=config.num_digits), to_prompt)


def public_tasks(config: Distill, split: Split) -> Rows:
    """Two parts geometry, one word problems, one charts."""
    from rollout.data.datasets import read_rows
    from rollout.data.layouts import chartqa, geometry3k, gsm8k
    from rollout.data.mixture import mixture
    from rollout.data.prompts import prompts_from

    problems = read_rows(config.source("hiyouga/geometry3k"), split)
    words = read_rows(config.source("openai/gsm8k"), split, subset="main")
    charts = read_rows(config.source("HuggingFaceM4/ChartQA"), split)
    return mixture(
        {
            "geometry3k": (prompts_from(problems, geometry3k), 2),
            "gsm8k": (prompts_from(words, gsm8k), 1),
            "chartqa": (prompts_from(charts, chartqa), 1),
        }
    )


def run(config: Distill) -> None:
    """Cold starts of small student and teacher, then distillation."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from policies.loading import supported_model
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import cold_start, with_start_policy

    if config.teacher.model is None:
        raise ValueError(
            f"teacher.model = None: there is no teacher to distill; name one (preset {config.preset} has none)"
        )
    small = config.preset == "small"
    splits: tuple[Split, Split] = ("train", "test")
    prompts, held_out = ((small_task if small else public_tasks)(config, split) for split in splits)
    names = {config.model, config.teacher.model}
    if "cold-start" in names:
        for name in names - {"cold-start"}:
            supported_model(name)  # before the cold start of the other one
    config = with_start_policy(config, prompts)
    if config.teacher.model == "cold-start":
        teacher = str(cold_start(config.teacher_start, prompts))
        config = replace(config, teacher=replace(config.teacher, model=teacher))
    print_result(train(config, prompts=prompts, reward=sum_is_right if small else PUBLIC_TASKS, eval_prompts=held_out))


if __name__ == "__main__":
    main(run, Distill, __doc__)
