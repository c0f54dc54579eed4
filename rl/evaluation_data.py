"""From what `--data` names to prompts, in their own order."""

from __future__ import annotations

from typing import Any

from rewards.loading import load_function
from rl.sampling_config import DataColumns, SamplingRunConfig
from rollout import layouts
from rollout.datasets import read_rows
from rollout.prompts import Prompts, ToPrompt, column_mapping, prompts_from
from rollout.types import Prompt

LAYOUTS: dict[str, ToPrompt] = {
    mapping.__name__: mapping
    for mapping in (
        layouts.geometry3k,
        layouts.mathvista,
        layouts.mathvision,
        layouts.mmmu,
        layouts.chartqa,
        layouts.countbench,
        layouts.refcoco,
        layouts.ocrbench,
        layouts.gsm8k,
        layouts.aime,
        layouts.reasoning_gym,
    )
}


def evaluation_prompts(config: SamplingRunConfig) -> Prompts:
    """The prompts of a run, all of them; each is made when it is asked for.

    Raises:
        ValueError: There is no such data or layout, a column is missing, or the function returns no prompts.
    """
    if config.layout is not None and config.layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {config.layout!r}")
    mapping = LAYOUTS[config.layout] if config.layout else _mapping(config.columns)
    if ":" in config.data:
        rows = load_function(config.data, "dataset")()
        return prompts_from(rows, None if isinstance(rows, Prompts) or _are_prompts(rows) else mapping)
    return prompts_from(read_rows(config.data, config.split, subset=config.subset), mapping)


def _are_prompts(rows: Any) -> bool:
    return isinstance(rows, list | tuple) and bool(rows) and isinstance(rows[0], Prompt)


def _mapping(columns: DataColumns) -> ToPrompt:
    return column_mapping(
        question=columns.question,
        image=columns.image,
        video=columns.video,
        answer=columns.answer,
        id=columns.id,
        task_column=columns.task,
    )
