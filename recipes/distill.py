"""On-policy distillation: a small student samples, and a better teacher says of every token how likely it finds it.

The reverse KL to the teacher falls on the student's own responses; rewards are only measured, unless --teacher.reward-weight gives
them a say. Small version: sums of handwritten digits, and a teacher that has had four times the student's supervised learning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rl import TrainConfig
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, LearnerConfig, OptimizerConfig, RolloutConfig, TeacherConfig
from rollout import Completion, Prompt


@dataclass(frozen=True, kw_only=True)
class Distill(TrainConfig):
    """Distillation on sums of handwritten digits."""

    model: str = "cold-start"
    """The student: a folder or hub name; cold-start makes and teaches the small policy first."""
    run_dir: Path = Path("runs/distill")
    """Where config, metrics, samples and checkpoints go."""
    steps: int = 100
    """Steps: each one generates, reads, learns and syncs."""
    num_digits: int = 3
    """Digits in a picture."""
    cold_start: ColdStartConfig = ColdStartConfig()
    teacher_start: ColdStartConfig = ColdStartConfig(updates=1000)
    teacher: TeacherConfig = TeacherConfig(model="cold-start", dtype="float32")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=400)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=16, max_model_len=128)
    learner: LearnerConfig = LearnerConfig(dtype="float32", threads=2)
    eval: EvalConfig = EvalConfig(num_prompts=400)


def right_sum(prompt: Prompt, completion: Completion) -> float:
    """1 if the number behind the last `=` is the sum: measured, and not learnt from unless it has a weight."""
    return float(completion.text.rpartition("=")[2].strip() == prompt.answer.rpartition("=")[2])


def run(config: Distill) -> None:
    """Cold starts of student and teacher, then distillation."""
    # Imported late: `--help` and a mistyped option need not wait for torch and Ray.
    from policies.loading import supported_model
    from rl import train
    from rl.sft import cold_start
    from rl.summary import print_result
    from rollout.prompts import prompts_from
    from rollout.sources.digit_sums import digit_sums, to_prompt

    prompts = prompts_from(digit_sums("train", num_digits=config.num_digits), to_prompt)
    held_out = prompts_from(digit_sums("test", num_digits=config.num_digits, num_prompts=2000), to_prompt)
    for name in (config.model, config.teacher.model):
        if name not in ("cold-start", None):
            supported_model(name)  # before the other one's cold start takes its minutes
    if config.model == "cold-start":
        config = replace(config, model=str(cold_start(config.cold_start, prompts)))
    if config.teacher.model == "cold-start":
        teacher = str(cold_start(config.teacher_start, prompts))
        config = replace(config, teacher=replace(config.teacher, model=teacher))
    print_result(train(config, prompts=prompts, reward=right_sum, eval_prompts=held_out))


if __name__ == "__main__":
    main(run, Distill, __doc__)
