"""Which prompts: the options of every command that reads data of the user's own."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DataColumns:
    """Which columns of the data make a prompt."""

    question: str = "question"
    """The text of the question."""
    image: str | None = "image"
    """An image, or a list of images; None where no row has any."""
    video: str | None = None
    """A video, or a list of videos."""
    answer: str | None = "answer"
    """The reference answer; None where the reward needs none."""
    id: str | None = None
    """The name of the row. Default: its number."""
    task: str | None = None
    """The task of each row. Default: all are of the task `default`."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A set of prompts."""

    data: str
    """A .jsonl, .json, .csv or .parquet file, a folder, a hub name, or FILE.py:FUNCTION, which returns prompts."""
    split: str | None = None
    """The split of a dataset from the hub or a folder; may be left out where there is one."""
    subset: str | None = None
    """The subset of a dataset on the hub, such as main of openai/gsm8k."""
    layout: str | None = None
    """A public layout that the data has, in place of columns: geometry3k, mathvista, mathvision, mmmu, chartqa, countbench,
    refcoco, ocrbench, gsm8k, aime, reasoning_gym."""
    columns: DataColumns = field(default_factory=DataColumns)
