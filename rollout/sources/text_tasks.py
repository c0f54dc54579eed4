"""Procedural text tasks of reasoning-gym: arithmetic, algebra, logic, games; 106 of them, each with as many items as wanted.

Items of the two splits differ where a task has enough of them: they are drawn by other seeds.
"""

from __future__ import annotations

from typing import Any, Literal

from datasets import Dataset

from rollout.prompts import column_mapping

Split = Literal["train", "test"]

HELD_OUT = 1_000_003
"""Added to the seed of held-out items."""

to_prompt = column_mapping(id="id", image=None, task_column="task")


def text_task(name: str, split: Split, *, num_prompts: int = 5_000, seed: int = 0, **options: Any) -> Dataset:
    """Draws items of a task; equal arguments give equal items, in any process.

    Args:
        name: The task, as reasoning-gym names it: `chain_sum`.
        split: `"train"` or `"test"`; what is drawn for training and is in the test split all the same, as happens where a task has
            few items, is left out of training.
        num_prompts: Items that are drawn; fewer are left where they repeat each other.
        seed: Seeds the draw.
        options: Of the task: `min_terms=2`.

    Returns:
        Columns `id`, `question`, `answer` (text), `task`, and `metadata` as `layouts.reasoning_gym` takes it.

    Raises:
        ValueError: There is no such task or option, or reasoning-gym is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if num_prompts < 1:
        raise ValueError(f"num_prompts must be >= 1, got {num_prompts}")
    items = _items(name, num_prompts, seed + (HELD_OUT if split == "test" else 0), options)
    if split == "train":
        held_out = _items(name, max(1, num_prompts // 10), HELD_OUT, options)
        items = {question: answer for question, answer in items.items() if question not in held_out}
    if not items:
        raise ValueError(f"task {name!r} with {options or 'its defaults'} has too few items to hold any out")
    columns = {
        "id": [f"{name}-{split}-{number}" for number in range(len(items))],
        "question": list(items),
        "answer": list(items.values()),
        "task": [name] * len(items),
        "metadata": [{"source_dataset": name, "source_index": number} for number in range(len(items))],
    }
    return Dataset.from_dict(columns)


def _items(name: str, count: int, seed: int, options: dict[str, Any]) -> dict[str, str]:
    """Answers by question, each question once."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError(
            f"text task {name!r} needs reasoning-gym: `pip install reasoning-gym` (a C compiler builds a part of it)"
        ) from error
    try:
        made = reasoning_gym.create_dataset(name, size=count, seed=seed, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym cannot make {name!r} with {options}: {error}") from error
    return {item["question"]: str(item["answer"]) for item in made if item["answer"] is not None}
