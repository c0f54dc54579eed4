"""The options of a set of prompts, and the prompts themselves, in their own order."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from rewards.loading import load_function
from rollout.data.chat_rows import chat_rows
from rollout.data.datasets import read_rows
from rollout.data.layouts import LAYOUTS
from rollout.data.prompts import Prompts, Rows, ToPrompt, column_mapping, prompts_from
from rollout.types import Prompt


@dataclass(frozen=True, kw_only=True)
class DataColumns:
    """The columns of the data that make a prompt."""

    question: str = "question"
    """The text of the question. A dot leads into a column: extra_info.question."""
    messages: str | None = None
    """A conversation, in place of the question: role and content, or from and value."""
    image: str | None = "image"
    """An image, or a list of images; None where no row has any."""
    video: str | None = None
    """A video, a list of videos, or a list of one's frames."""
    answer: str | None = "answer"
    """The reference answer, such as reward_model.ground_truth; None where the reward needs none."""
    id: str | None = None
    """The name of the row. Default: its number."""
    task: str | None = None
    """The task of each row. Default: all are of the task `default`."""
    system: str | None = None
    """The system message."""
    tools: str | None = None
    """The tools that the policy may call, as JSON schemas."""
    template: str | None = None
    """A mapping of variables for the chat template, such as {"enable_thinking": false}."""
    fps: float | str | None = None
    """Frames per second of videos that are lists of frames without a rate, or the column with it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A set of prompts."""

    data: str
    """A .jsonl, .json, .csv, .tsv, .parquet or .arrow file, a folder, a hub name, or FILE.py:FUNCTION, which returns prompts."""
    split: str | None = None
    """The split of a dataset from the hub or a folder; may be left out where there is one."""
    subset: str | None = None
    """The subset of a dataset, such as main of openai/gsm8k; of a folder, the folder in it."""
    layout: str | None = None
    """A public layout that the data has, in place of columns: geometry3k, mathvista, mathvision, mmmu, chartqa, countbench,
    refcoco, ocrbench, gsm8k, aime, reasoning_gym. Or chat_rows: as TRL, verl, EasyR1, ms-swift, LLaMA-Factory or LLaVA write."""
    columns: DataColumns = field(default_factory=DataColumns)


def prompts_of(config: DataConfig) -> Prompts:
    """All prompts of a set; each is made on access.

    Raises:
        ValueError: There is no such data or layout, a column is missing, or the function returns no prompts.
    """
    return prompts_from(*rows_of(config))


def rows_of(config: DataConfig, *, demonstrated: bool = False) -> tuple[Rows, ToPrompt | None]:
    """Returns rows and the function that makes prompts of them; None if the rows are prompts.

    Args:
        config: The data.
        demonstrated: Keeps the response of a row as the last message, for supervised learning.

    Raises:
        ValueError: There is no such data or layout.
    """
    mapping = mapping_of(config.layout, config.columns, demonstrated=demonstrated)
    if ":" not in config.data:
        return read_rows(config.data, config.split, subset=config.subset), mapping
    rows = load_function(config.data, "dataset")()
    return rows, None if isinstance(rows, Prompts) or _are_prompts(rows) else mapping


def mapping_of(
    layout: str | None, columns: DataColumns, *, named: str = "--columns.{}", demonstrated: bool = False
) -> ToPrompt:
    """Returns the function that makes a prompt of a row.

    Args:
        layout: The name of a layout; None: `columns`.
        columns: The columns.
        named: The option of a column, for errors.
        demonstrated: As in `rows_of`.

    Raises:
        ValueError: There is no such layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == chat_rows.__name__:
        return partial(chat_rows, fps=columns.fps, demonstrated=demonstrated)
    if layout is not None:
        return LAYOUTS[layout]
    options = {field.name: getattr(columns, field.name) for field in fields(columns)}
    return column_mapping(
        task_column=options.pop("task"), named=lambda name: named.format(name.removesuffix("_column")), **options
    )


def evaluation_set(name: str, like: DataConfig) -> Prompts:
    """The prompts of an evaluation set, by its short name.

    Args:
        name: SOURCE or LAYOUT=SOURCE, each with an optional @SPLIT.
        like: A set whose columns or layout apply if the name has no layout.

    Raises:
        ValueError: There is no such layout, or `prompts_of` fails; names the set.
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
