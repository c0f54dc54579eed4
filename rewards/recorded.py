"""Completions that were recorded, read back as groups: those that a run keeps in `samples/`, and any table of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from rewards.checking import describe
from rollout.types import Completion, Group, Observation, Prompt, Turn

FORMATS = "give a run's samples folder, one of its step_*.jsonl, or another .jsonl or .parquet file"
_FIELDS = {"prompt_id", "task", "images", "videos", "columns"}  # columns that a Prompt has another place for


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where the columns of a table have other names."""

    completion: str | None = None
    """What was answered, a text or a list of them; else `completions`, `completion` or `text`."""
    question: str | None = None
    """What was asked, a text or chat messages; else `messages` or `prompt`, if there is one."""
    answer: str | None = None
    """The reference; else `answer`, if there is one."""


def read_groups(path: Path, columns: Columns = Columns(), limit: int = 0) -> list[Group]:
    """Reads what was asked and answered; each row is a group.

    Other columns become `Prompt.columns`; a run's samples have those that JSON can hold. Images are files beside the table, in
    its column `images`. Token ids and log-probabilities are not recorded: a completion has zeros instead, one a token for every
    four bytes and one for its end. Nor are videos, and where a turn of an episode begins and ends.

    Args:
        path: A folder with `step_*.jsonl`, or with `samples/` in it; or one file, .jsonl or .parquet.
        columns: Names that are not the usual ones.
        limit: Rows to read; 0: all.

    Raises:
        ValueError: There is nothing to read, or it is not as described here.
    """
    groups: list[Group] = []
    for file in _files(path):
        for number, row in _rows(file):
            if limit and len(groups) == limit:
                break
            try:
                groups.append(_group(row, columns, file.parent, f"row-{number}"))
            except ValueError as error:
                raise ValueError(f"row {number} of {file} {error}") from error
    if not any(group.completions for group in groups):
        raise ValueError(f"{path} holds no completions; {FORMATS} that does")
    return groups


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"there is no {path}; {FORMATS}")
    if not path.is_dir():
        return [path]
    folder = path / "samples" if (path / "samples").is_dir() else path
    files = sorted(folder.glob("step_*.jsonl"))
    if not files:
        raise ValueError(f"{folder} has no step_*.jsonl in it; {FORMATS}")
    return files


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the rows of a table and their numbers, as an editor counts lines."""
    if file.suffix == ".parquet":
        yield from enumerate(_parquet(file), 1)
        return
    if file.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{file} is of no kind that can be read here; {FORMATS}")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"line {number} of {file} is not JSON ({describe(error)}); write one object a line"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"line {number} of {file} is not a JSON object but {brief(row)}; write one object a line"
                )
            yield number, row


def _parquet(file: Path) -> Any:
    from datasets import Dataset

    try:
        return Dataset.from_parquet(str(file))
    except Exception as error:  # pyarrow's, datasets' and the file system's
        raise ValueError(f"{file} cannot be read as Parquet: {describe(error)}") from error


def _group(row: Mapping[str, Any], columns: Columns, folder: Path, name: str) -> Group:
    """Raises ValueErrors that go on from "row 3 of FILE"."""
    import numpy as np

    completion = _column(row, columns.completion, "completions", "completion", "text")
    if completion is None:
        raise ValueError(f"has no column 'completions', 'completion' or 'text'; it has {list(row)}")
    question = _column(row, columns.question, "messages", "prompt")
    answer = _column(row, columns.answer, "answer")
    known = {completion, question, answer} | _FIELDS
    prompt = Prompt(
        id=str(row.get("prompt_id", row.get("id", name))),
        messages=_messages(row[question]) if question else [],
        images=[_picture(value, folder) for value in row.get("images") or []],
        answer=row[answer] if answer else None,
        task=str(row.get("task", "default")),
        columns={key: value for key, value in row.items() if key not in known} | dict(row.get("columns") or {}),
    )
    told = row[completion]
    told = told if isinstance(told, list) else [told]
    return Group(
        prompt=prompt,
        prompt_token_ids=np.zeros(1, np.int32),
        completions=[_completion(each, folder) for each in told],
    )


def _column(row: Mapping[str, Any], wanted: str | None, *usual: str) -> str | None:
    if wanted is not None and wanted not in row:
        raise ValueError(f"has no column {wanted!r}; it has {list(row)}")
    return wanted or next((name for name in usual if name in row), None)


def _messages(question: Any) -> Sequence[Mapping[str, Any]]:
    if question is None or isinstance(question, str):
        return [{"role": "user", "content": question or ""}]
    if isinstance(question, list) and all(isinstance(each, dict) and "content" in each for each in question):
        return question
    raise ValueError(f"asks {brief(question)}; write a text, or a list of chat messages")


def _completion(told: Any, folder: Path) -> Completion:
    """Makes a completion of a text, of a chat message, or of what a run has recorded."""
    import numpy as np

    recorded = told if isinstance(told, dict) else {"text": told}
    text = recorded.get("text", recorded.get("content"))
    if not isinstance(text, str):
        raise ValueError(f"has the completion {brief(told)}; write a text, or an object with a 'text'")
    num_tokens = -(-len(text.encode("utf-8", "replace")) // 4) + 1
    turns = recorded.get("turns")
    return Completion(
        text=text,
        token_ids=np.zeros(num_tokens, np.int32),
        logprobs=np.zeros(num_tokens, np.float32),
        finish_reason=recorded.get("finish_reason") or "stop",
        policy_version=recorded.get("policy_version") or 0,
        turns=None if turns is None else [_turn(turn, folder) for turn in turns],
        outcome=recorded.get("outcome") or {},
    )


def _turn(recorded: Mapping[str, Any], folder: Path) -> Turn:
    shown = recorded.get("observation")
    if shown is not None:
        shown = Observation(text=shown, images=[_picture(value, folder) for value in recorded.get("images") or []])
    return Turn(text=recorded["text"], start=0, stop=0, observation=shown)


def _picture(value: Any, folder: Path) -> Any:
    """Returns a PIL image of a file's name or of `{"bytes": ...}`; of what `datasets` has decoded, itself."""
    from PIL import Image

    if isinstance(value, Image.Image):
        return value
    try:
        with Image.open(BytesIO(value["bytes"]) if isinstance(value, dict) else folder / value) as image:
            return image.copy()
    except (OSError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise ValueError(f"has an image that cannot be opened: {describe(error)}") from error
