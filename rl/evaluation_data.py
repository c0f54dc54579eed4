"""From what `--data` names to prompts, in their own order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.loading import load_function
from rl.sampling_config import DataColumns, SamplingRunConfig
from rollout.prompts import Prompts, ToPrompt, column_mapping, prompts_from
from rollout.types import Prompt

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def evaluation_prompts(config: SamplingRunConfig) -> Prompts:
    """The prompts of a run, all of them; each is made when it is asked for.

    Raises:
        ValueError: There is no such data, a column is missing, or the function returns no prompts.
    """
    if ":" in config.data:
        rows = load_function(config.data, "dataset")()
        return prompts_from(rows, None if isinstance(rows, Prompts) or _are_prompts(rows) else _mapping(config.columns))
    path = Path(config.data).expanduser()
    rows, folder = _rows(path, config.split)
    return prompts_from(rows, _in_folder(_mapping(config.columns), folder))


def _are_prompts(rows: Any) -> bool:
    return isinstance(rows, list | tuple) and bool(rows) and isinstance(rows[0], Prompt)


def _rows(path: Path, split: str) -> tuple[Any, Path | None]:
    """The rows, and the folder that names of pictures are relative to."""
    import datasets

    try:
        if path.suffix in READERS:
            if not path.is_file():
                raise ValueError(f"there is no file {path}; {_FORMS}")
            return datasets.load_dataset(READERS[path.suffix], data_files=str(path), split="train"), path.parent
        if not path.is_dir():
            return datasets.load_dataset(str(path), split=split), None
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(str(path))
            return (saved[split] if isinstance(saved, Mapping) else saved), path
        return datasets.load_dataset(str(path), split=split), path
    except ValueError:
        raise
    except Exception as error:  # pyarrow's, datasets', the hub's and the file system's
        raise ValueError(f"data {str(path)!r} cannot be read: {type(error).__name__}: {error}; {_FORMS}") from error


_FORMS = "pass a .jsonl, .json, .csv or .parquet file, a folder, a hub name, or FILE.py:FUNCTION"


def _mapping(columns: DataColumns) -> ToPrompt:
    return column_mapping(
        question=columns.question,
        image=columns.image,
        video=columns.video,
        answer=columns.answer,
        id=columns.id,
        task_column=columns.task,
    )


def _in_folder(to_prompt: ToPrompt, folder: Path | None) -> ToPrompt:
    """Has pictures that are named, and not there from where we are, looked for beside the data."""

    def placed(media: Any) -> Any:
        if folder is not None and isinstance(media, str) and not Path(media).exists():
            return str(folder / media)
        return media

    def made(row: Any) -> Prompt:
        from dataclasses import replace

        prompt = to_prompt(row)
        return replace(
            prompt, images=[placed(each) for each in prompt.images], videos=[placed(each) for each in prompt.videos]
        )

    return made
