"""From what `--data` names to prompts, in their own order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewards.loading import load_function
from rl.data_config import DataColumns, DataConfig
from rollout.data.datasets import read_rows
from rollout.data.layouts import LAYOUTS
from rollout.data.prompts import Prompts, Rows, ToPrompt, column_mapping, prompts_from
from rollout.types import Prompt


def prompts_of(config: DataConfig) -> Prompts:
    """The prompts that are meant, all of them; each is made when it is asked for.

    Raises:
        ValueError: There is no such data or layout, a column is missing, or the function returns no prompts.
    """
    return prompts_from(*rows_of(config))


def rows_of(config: DataConfig) -> tuple[Rows, ToPrompt | None]:
    """Rows, and what makes prompts of them; None where they are prompts.

    Raises:
        ValueError: There is no such data or layout.
    """
    if config.layout is not None and config.layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {config.layout!r}")
    mapping = LAYOUTS[config.layout] if config.layout else _mapping(config.columns)
    if ":" not in config.data:
        return read_rows(config.data, config.split, subset=config.subset), mapping
    rows = load_function(config.data, "dataset")()
    return rows, None if isinstance(rows, Prompts) or _are_prompts(rows) else mapping


def evaluation_set(name: str, like: DataConfig) -> Prompts:
    """The prompts of an evaluation set that is named in one word.

    Args:
        name: SOURCE, LAYOUT=SOURCE, each with @SPLIT behind it where the source has several.
        like: A set with the columns, or the layout, that holds where none is named.

    Raises:
        ValueError: There is no such layout; or as `prompts_of`, with the set's name.
    """
    named, has_layout, rest = name.partition("=")
    if has_layout and named not in LAYOUTS and not Path(name).exists():
        raise ValueError(f"evaluation set {name}: its layout must be one of {', '.join(LAYOUTS)}, got {named!r}")
    layout, source = (named, rest) if named in LAYOUTS else (like.layout, name)
    source, at, split = source.rpartition("@")
    if not at or "/" in split:  # no split: all of it is the source
        source, split = source + at + split, ""
    config = DataConfig(data=source, split=split or None, layout=layout, columns=like.columns)
    try:
        return prompts_of(config)
    except ValueError as error:
        raise ValueError(f"evaluation set {name}: {error}") from error


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
