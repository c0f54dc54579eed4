"""Trains a policy on an answer format, or on reasoning, by supervised learning; RL starts from its partial skill.

    python -m recipes.cold_start                                    the small policy, as the other recipes make it
    python -m recipes.cold_start --model FOLDER --data rows.jsonl --reasoning solution      any policy, any data

    python -m recipes.cold_start --model FOLDER --data llava.json --layout chat_rows        the last answer of each conversation

The recipes that train by RL load the result by `--model FOLDER`. Supervised learning has no rewards, so there is no --reward.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import tyro
from annotated_types import Ge, Gt
from rich.console import Console

from policies.model_sizes import PUBLISHED
from rl.cli import main
from rl.config import ColdStartConfig, LearnerConfig, LoraConfig, OptimizerConfig
from rl.hardware.memory import memory_table, plan_learner
from rl.hardware.presets import PRESETS, Preset, PresetName
from rl.sft.config import SftConfig, check_sft

if TYPE_CHECKING:
    from rollout.data.prompts import Prompts

OWN_DATA = ("digit_sums", "easy_vqa")
"""Data of the small policy by default."""
SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class ColdStart(SftConfig):
    """The policy, the data and the supervised run."""

    model: str = "small"
    """A folder or hub name; small makes the small policy first, and keeps the result under the hash of its inputs."""
    kind: Literal["dense", "moe"] = "dense"
    """Architecture of the small policy: Qwen3-VL or Qwen3-VL-MoE."""
    data: str = "digit_sums"
    """digit_sums or easy_vqa, the training set of the recipe of that name; or a .jsonl or .parquet file, a folder, a hub name."""
    questions: Literal["color_and_shape", "yes_no_balanced", "mixed"] = "color_and_shape"
    """easy_vqa: the kind of questions."""
    num_digits: int = 3
    """digit_sums: digits in a picture."""
    split: str | None = None
    """Other data: the split; default: the only one, or train."""
    layout: str | None = None
    """Other data: a layout in place of columns. chat_rows reads TRL, verl, EasyR1, ms-swift, LLaMA-Factory and LLaVA; or that of a
    public dataset, such as geometry3k."""
    question: str = "question"
    """Other data: the column with the question."""
    messages: str | None = None
    """Other data: the column with a conversation, in place of the question; its last answer is learned."""
    image: str | None = None
    """Other data: the column with an image or a list of images; default: no images."""
    video: str | None = None
    """Other data: the column with a video, a list of videos, or a list of one's frames; default: no videos."""
    system: str | None = None
    """Other data: the column with the system message."""
    tools: str | None = None
    """Other data: the column with the tools that the policy may call, as JSON schemas."""
    template: str | None = None
    """Other data: the column with a mapping of variables for the chat template."""
    fps: float | str | None = None
    """Other data: frames per second of videos that are lists of frames without a rate, or the column with it."""
    answer: str | None = None
    """Other data: the column with the answer; default: answer, or with --messages none, as the conversation ends with it."""
    reasoning: str | None = None
    """The column with reference reasoning, put into <think>…</think> before the answer; default: the answer alone."""
    held_out: int = 64
    """Held-out prompts for the loss: of digit_sums and easy_vqa from their test sets, of other data the last rows."""
    steps: Annotated[int, tyro.conf.arg(aliases=["--updates"])] = 250
    """Optimizer updates. With the number of a recipe's --cold-start.updates, that recipe finds the small policy made here."""
    run_dir: Path = Path("runs/cold_start")
    """Folder for metrics and checkpoints; each small policy gets its own folder in it."""
    seed: int = 0
    """Seeds the order of prompts, and the small policy's initial weights."""
    resume: str | None = None
    """auto (the newest checkpoint of run_dir, if any) or a checkpoint folder; the small policy always resumes by itself."""
    learning_rate: Annotated[float | None, Gt(0)] = None
    """Peak learning rate; it rises over 10 updates (small: a twentieth of all) and stays. Default: 1e-3 for small, else 2e-5."""
    vision_learning_rate: Annotated[float | None, Ge(0)] = None
    """Peak learning rate of the vision tower; default: learning_rate. A new tower before transplanted weights needs 1e-3."""
    max_tokens: int = 4096
    """Longest prompt plus answer, in tokens, images included; longer ones are logged, skipped and counted."""
    preset: PresetName = "small"
    """small trains here, on the CPU; the others are Qwen3-VL's sizes, on GPUs: they replace model, learner and sizes."""
    plan: bool = False
    """Prints the memory plan of the preset's GPUs, and stops."""
    eval_every: int = 50
    """Steps between measurements of the held-out loss."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: tyro.conf.Suppress[int] = 2
    optimizer: tyro.conf.Suppress[OptimizerConfig] = OptimizerConfig(betas=(0.9, 0.98), weight_decay=0.01)
    lora: LoraConfig = LoraConfig()
    learner: LearnerConfig = LearnerConfig()

    def of_size(self, preset: Preset) -> Self:
        """Long reasoning, with a rank of the learner on every GPU of the preset's machines."""
        return replace(
            self,
            model=preset.model,
            steps=1000,
            batch_size=128,
            learning_rate=1e-5,
            max_tokens=16384,
            max_image_pixels=2048 * 1024,
            learner=replace(preset.learner, gpus=sum(preset.gpus)),
        )

    def print_plan(self, console: Console) -> None:
        """Prints the memory plan."""
        preset, options = PRESETS[self.preset], sft_config(self)
        check_sft(options)
        plan = plan_learner(options.learning_options(), PUBLISHED[self.preset], preset.machine, group_size=1)
        console.print(memory_table(plan, keep_checkpoints=options.keep_checkpoints))


def run(config: ColdStart) -> None:
    """Makes or loads the policy, and trains it."""
    # Late imports: `--help` and mistyped options do not wait for torch.
    from rl.run_dir.tracker import read_metrics
    from rl.sft import cold_start, supervise
    from rl.sft.demonstrations import reasoned_answer, reference_answer

    if config.preset != "small" and config.data in OWN_DATA:
        raise ValueError(
            f"--data is needed with a preset: data = {config.data} is for the small policy; name a file, a folder or a hub name"
        )
    small = small_config(config) if config.model == "small" else None
    prompts, held_out = data(config)
    demonstrate = reasoned_answer(config.reasoning) if config.reasoning else reference_answer
    if small is None:
        folder = supervise(sft_config(config), prompts, demonstrate, held_out)
        rows = read_metrics(config.run_dir)
    else:
        folder = cold_start(small, prompts, demonstrate, held_out)
        rows = read_metrics(folder / "run")
        report = json.loads((folder / "cold_start.json").read_text())
        print(
            f"loss {report['loss_first']:.3f} → {report['loss_last']:.3f} nats per token, in {report['seconds']:.0f} s"
        )
    if measured := [row["eval/loss"] for row in rows if "eval/loss" in row]:
        print(f"held-out loss {measured[0]:.3f} → {measured[-1]:.3f} nats per token")
    print(f"policy: {folder}")


def data(config: ColdStart) -> tuple[Prompts, Prompts]:
    """Training and held-out prompts."""
    from rl.data import DataColumns, mapping_of
    from rl.sft.demonstrations import demonstrated
    from rollout.data.datasets import read_rows
    from rollout.data.prompts import prompts_from
    from rollout.tasks import digit_sums, easy_vqa

    if config.data == "digit_sums":
        prompts, held_out = (
            prompts_from(digit_sums.digit_sums(split, num_digits=config.num_digits), digit_sums.to_prompt)
            for split in SPLITS
        )
        return prompts, held_out[: config.held_out]
    if config.data == "easy_vqa":
        prompts, held_out = (
            prompts_from(easy_vqa.easy_vqa(split, questions=config.questions), easy_vqa.to_prompt) for split in SPLITS
        )
        return prompts, held_out[: config.held_out]
    names = ("question", "messages", "image", "video", "system", "tools", "template", "fps")
    columns = DataColumns(
        **{name: getattr(config, name) for name in names},
        answer=config.answer or (None if config.messages else "answer"),
    )
    mapping = mapping_of(config.layout, columns, named="--{}", demonstrated=True)
    rows = prompts_from(read_rows(config.data, config.split), demonstrated(mapping))
    num_trained = len(rows) - config.held_out
    if num_trained < 1:
        raise ValueError(f"held_out = {config.held_out} leaves none of the {len(rows)} rows to train on: lower it")
    return rows[:num_trained], rows[num_trained:]


def small_config(config: ColdStart) -> ColdStartConfig:
    """The cold start of the small policy, as in the recipes that train by RL.

    Raises:
        ValueError: An option is set that a cold start fixes.
    """
    learner = config.learner
    fixed = LearnerConfig(dtype="auto" if learner.dtype == "auto" else "float32", threads=learner.threads)
    given: dict[str, tuple[object, object]] = {
        "preset": (config.preset, "small"),
        "learner": (learner, fixed),
        "lora": (config.lora, LoraConfig()),
        "resume": (config.resume, None),
        "vision_learning_rate": (config.vision_learning_rate, None),
    }
    for name, (value, only) in given.items():
        if value != only:
            raise ValueError(
                f"{name} = {value} is for --model FOLDER: the small policy is made in float32 in one process, and resumes by itself"
            )
    return ColdStartConfig(
        kind=config.kind,
        updates=config.steps,
        batch_size=config.batch_size,
        learning_rate=1e-3 if config.learning_rate is None else config.learning_rate,
        seed=config.seed,
        threads=config.learner.threads,
        max_image_pixels=config.max_image_pixels,
        cache_dir=config.run_dir,
    )


def sft_config(config: ColdStart) -> SftConfig:
    """The supervised run of a given policy."""
    optimizer = replace(
        config.optimizer,
        learning_rate=2e-5 if config.learning_rate is None else config.learning_rate,
        vision_learning_rate=config.vision_learning_rate,
    )
    shared = {field.name: getattr(config, field.name) for field in fields(SftConfig)}
    return SftConfig(**{**shared, "optimizer": optimizer})


if __name__ == "__main__":
    main(run, ColdStart, __doc__)
