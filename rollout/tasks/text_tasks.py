"""Procedural text tasks of reasoning-gym: 106 tasks of arithmetic, algebra, logic and games, each with any number of items.

A tenth of all questions is held out by a hash of their text. No seed and no number of items brings one of them into training.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal
from zlib import crc32

from datasets import Dataset

from rollout.data.prompts import column_mapping

Split = Literal["train", "test"]

HELD_OUT = 10
"""One of so many questions is held out."""

to_prompt = column_mapping(id="id", image=None, task_column="task")


def text_task(name: str, split: Split, *, num_prompts: int = 5_000, seed: int = 0, **options: Any) -> Dataset:
    """Draws items of a task; equal arguments give equal items, in any process.

    Args:
        name: The task, as reasoning-gym names it: `chain_sum`.
        split: `"train"` or `"test"`.
        num_prompts: Items that are drawn, of both splits. Nine or one in ten of them are in the split, fewer if some are equal.
        seed: Seeds the draw.
        options: The task's options, such as `min_terms=2`.

    Returns:
        Columns `id`, `question`, `answer` (text), `task`, and `metadata` as `layouts.reasoning_gym` takes it.

    Raises:
        ValueError: If there is no such task or option, or reasoning-gym is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if num_prompts < 1:
        raise ValueError(f"num_prompts must be >= 1, got {num_prompts}")
    drawn = _items(name, num_prompts, seed, tuple(sorted(options.items())))
    items = {question: answer for question, answer in drawn.items() if _is_held_out(question) == (split == "test")}
    if not items:
        raise ValueError(f"of {num_prompts} items of task {name!r} none is left for split {split!r}: raise num_prompts")
    columns = {
        "id": [f"{name}-{split}-{number}" for number in range(len(items))],
        "question": list(items),
        "answer": list(items.values()),
        "task": [name] * len(items),
        "metadata": [{"source_dataset": name, "source_index": number} for number in range(len(items))],
    }
    return Dataset.from_dict(columns)


def _is_held_out(question: str) -> bool:
    return crc32(question.encode()) % HELD_OUT == 0


@lru_cache(maxsize=32)  # both splits are cut from the same items, and some tasks take 20 ms for one
def _items(name: str, count: int, seed: int, options: tuple[tuple[str, Any], ...]) -> dict[str, str]:
    """Returns answers by question, each question once."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError(
            f"text task {name!r} needs reasoning-gym: `pip install reasoning-gym` (a C compiler builds a part of it)"
        ) from error
    try:
        made = reasoning_gym.create_dataset(name, size=count, seed=seed, **dict(options))
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym cannot make {name!r} with {dict(options)}: {error}") from error
    return {item["question"]: str(item["answer"]) for item in made if item["answer"] is not None}
