"""Reads a dataset as training does, and shows what it becomes; starts no engine and trains nothing.

    python -m recipes.check_data train.jsonl --reward math_answer
    python -m recipes.check_data hiyouga/geometry3k --split train --layout geometry3k --model Qwen/Qwen3-VL-8B-Instruct

It counts rows that cannot be used, by their reasons, and the tokens of the others. It shows what each column becomes, and one
prompt as the policy reads it. With a reward, reference answers are scored as if they were responses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import tyro

from rl.cli import main
from rl.data import DataConfig, rows_of

if TYPE_CHECKING:
    from rich.console import Console

    from rollout.data.prompts import Prompts
    from rollout.types import Prompt

SHOWN = 2_000
"""Characters of a prompt that are shown."""
KEPT = 64
"""Prompts whose references are scored."""
_VARYING = re.compile(r"\d+|'[^']*'")


@dataclass(frozen=True, kw_only=True)
class CheckData(DataConfig):
    """A check of a dataset."""

    data: tyro.conf.Positional[str]
    """A .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, a hub name, or FILE.py:FUNCTION, which returns prompts."""
    model: str = "small"
    """The policy whose processor reads the prompts: a folder or hub name. Default: the small one, with a token for each byte."""
    demonstrations: bool = False
    """Reads rows as recipes.cold_start does: the last answer of a conversation is the answer to learn."""
    reward: str | None = None
    """FILE.py:FUNCTION, or the name of a verifier of the package `rewards`. Scores the first reference answers."""
    limit: int = 200
    """Rows to read, evenly spread; 0: all."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Prompts of a dataset, and reasons of the rows that are none."""

    num_rows: int
    """Rows that were tried."""
    prompts: Sequence[Prompt]
    """The first prompts of those that can be used."""
    num_tokens: Sequence[int]
    """[prompts that can be used] tokens of each."""
    skipped: Counter[str]
    """Reason without numbers and names → rows."""
    examples: dict[str, str]
    """Reason without numbers and names → the first reason of the kind."""


def read(prompts: Prompts, processor: Any, limit: int) -> Reading:
    """Reads rows of a dataset, and renders their prompts.

    Args:
        prompts: The rows.
        processor: The policy's.
        limit: Rows to read, evenly spread; 0: all.
    """
    from rollout.data.media import UnreadablePrompt, brief
    from rollout.rendering import prompt_length

    count = min(limit or len(prompts), len(prompts))
    usable: list[Prompt] = []
    lengths: list[int] = []
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for place in range(count):
        index = place * len(prompts) // count
        try:
            prompt = prompts[index]
            lengths.append(prompt_length(processor, prompt))
            usable += [prompt] if len(usable) < KEPT else []
        except Exception as error:  # training skips a row, too, on which a chat template or a processor fails
            reason = str(error) if isinstance(error, UnreadablePrompt) else f"row {index}: {brief(error)}"
            kind = _VARYING.sub("…", reason)
            skipped[kind] += 1
            examples.setdefault(kind, reason)
    return Reading(num_rows=count, prompts=usable, num_tokens=lengths, skipped=skipped, examples=examples)


def show(reading: Reading, processor: Any, console: Console) -> None:
    """Prints counts, reasons, what columns have become, and one prompt."""
    from rollout.rendering import rendered_text

    show_line = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    used = reading.num_rows - reading.skipped.total()
    show_line(f"{reading.num_rows} rows read: {used} prompts, {reading.skipped.total()} skipped")
    for kind, count in reading.skipped.most_common(10):
        show_line(f"  {count} × {reading.examples[kind]}", style="yellow")
    if not reading.prompts:
        return
    tokens = reading.num_tokens
    show_line(f"tokens of a prompt: {min(tokens)} to {max(tokens)}, median {median(tokens):g}")
    prompt = reading.prompts[0]
    for name, value in _fields(prompt).items():
        show_line(f"  {name}: {value}")
    show_line(f"prompt {prompt.id!r} as the policy reads it, {tokens[0]} tokens:")
    show_line(rendered_text(processor, prompt)[:SHOWN])


def _fields(prompt: Prompt) -> dict[str, str]:
    """Returns what the row's columns have become, in words."""
    shown = {
        "task": prompt.task,
        "messages": ", ".join(message["role"] for message in prompt.messages),
        **({"template": f"{dict(prompt.template)!r:.200}"} if prompt.template else {}),
        "answer": f"{type(prompt.answer).__name__} {prompt.answer!r:.200}",
        "images": ", ".join(f"{image.width} × {image.height}" for image in prompt.images) or "none",
        "videos": ", ".join(f"{len(video.frames)} frames" for video in prompt.videos) or "none",
    }
    columns = {f"column {name}": f"{type(value).__name__} {value!r:.80}" for name, value in prompt.columns.items()}
    return shown | columns


def score_references(reading: Reading, reward: str, console: Console) -> None:
    """Scores reference answers as if they were responses, and prints how many earn more than nonsense of the same length.

    Raises:
        ValueError: No reference of a task earns a reward.
    """
    from rewards.check import find_reward
    from rewards.trial.references import check_references
    from rewards.workers.runner import RewardRunner

    answered = [prompt for prompt in reading.prompts if prompt.answer is not None]
    with RewardRunner(find_reward(reward), timeout=30.0) as runner:
        check_references(runner, [[prompt] for prompt in answered], seconds=10.0)
    console.print(
        f"{reward}: tried on up to {len(answered)} reference answers; those that earn nothing are named above",
        soft_wrap=True,
    )


def run(config: CheckData) -> None:
    """Reads, shows and scores."""
    from rich.console import Console

    from policies.loading import load_processor
    from policies.small.qwen3_vl import small_processor
    from rl.sft.demonstrations import demonstrated
    from rollout.data.prompts import prompts_from

    console = Console()
    processor = small_processor() if config.model == "small" else load_processor(config.model)
    rows, to_prompt = rows_of(config, demonstrated=config.demonstrations)
    if config.demonstrations:
        to_prompt = demonstrated(to_prompt or (lambda prompt: prompt))
    reading = read(prompts_from(rows, to_prompt), processor, config.limit)
    show(reading, processor, console)
    if not reading.prompts:
        raise ValueError(f"none of {reading.num_rows} rows can be used: correct the data, --columns or --layout")
    if config.reward is not None:
        score_references(reading, config.reward, console)


if __name__ == "__main__":
    main(run, CheckData, __doc__)
