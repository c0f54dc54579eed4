"""Completions that were recorded, read back as groups: those that a run keeps in `samples/`, and any table of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from rewards.workers.call import describe
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
    num_tokens: str | None = None
    """How many tokens the completion has, a number or a list of them; else `num_tokens`, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a table holds.

    Attributes:
        groups: One for each row.
        num_guessed: Completions of which the table does not say how many tokens they have.
    """

    groups: list[Group]
    num_guessed: int


def read_groups(path: Path, columns: Columns = Columns(), limit: int = 0) -> list[Group]:
    """Reads the groups alone, as `read_recorded` does."""
    return read_recorded(path, columns, limit).groups


def read_recorded(path: Path, columns: Columns = Columns(), limit: int = 0) -> Recorded:
    """Reads what was asked and answered; each row is a group.

    Other columns become `Prompt.columns`; a run's samples have those that JSON can hold. Images are files beside the table, in
    its column `images`; videos are not recorded. Of tokens their number is: the ids and log-probabilities of a completion are
    as many zeros. Where the number is missing it is guessed: one for every four bytes of what was said, and one for its end.

    Args:
        path: A folder with `step_*.jsonl`, or with `samples/` in it; or one file, .jsonl or .parquet.
        columns: Names that are not the usual ones.
        limit: Rows to read; 0: all.

    Raises:
        ValueError: There is nothing to read, or it is not as described here.
    """
    groups: list[Group] = []
    num_guessed = 0
    for file in _files(path):
        for number, row in _rows(file):
            if limit and len(groups) == limit:
                break
            try:
                group, missing = _group(row, columns, file.parent, f"row-{number}")
            except ValueError as error:
                raise ValueError(f"row {number} of {file} {error}") from error
            groups.append(group)
            num_guessed += missing
    if not any(group.completions for group in groups):
        raise ValueError(f"{path} holds no completions; {FORMATS} that does")
    return Recorded(groups=groups, num_guessed=num_guessed)


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


def _group(row: Mapping[str, Any], columns: Columns, folder: Path, name: str) -> tuple[Group, int]:
    """Makes a group of a row, and says of how many completions it does not tell the tokens.

    Raises:
        ValueError: The row is not as described; the message goes on from "row 3 of FILE".
    """
    import numpy as np

    completion = _column(row, columns.completion, "completions", "completion", "text")
    if completion is None:
        raise ValueError(f"has no column 'completions', 'completion' or 'text'; it has {list(row)}")
    question = _column(row, columns.question, "messages", "prompt")
    answer = _column(row, columns.answer, "answer")
    tokens = _column(row, columns.num_tokens, "num_tokens")
    known = {completion, question, answer, tokens} | _FIELDS
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
    numbers = _numbers(row[tokens] if tokens else None, told)
    completions = [_completion(each, number, folder) for each, number in zip(told, numbers, strict=True)]
    return Group(prompt=prompt, prompt_token_ids=np.zeros(1, np.int32), completions=completions), numbers.count(None)


def _numbers(column: Any, told: Sequence[Any]) -> list[int | None]:
    """Returns how many tokens each completion has: as it says itself, or as the column does, or `None`."""
    beside = column if isinstance(column, list) else [column] * len(told)
    if len(beside) != len(told):
        raise ValueError(f"has {len(told)} completions and {len(beside)} numbers of tokens; write one for each")
    own = [each.get("num_tokens") if isinstance(each, dict) else None for each in told]
    numbers = [outer if inner is None else inner for inner, outer in zip(own, beside, strict=True)]
    for number in numbers:
        if number is not None and (type(number) is not int or number < 0):
            raise ValueError(f"has a completion of {brief(number)} tokens; write a whole number, or none")
    return numbers


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


def _completion(told: Any, num_tokens: int | None, folder: Path) -> Completion:
    """Makes a completion of a text, of a chat message, or of what a run has recorded; `None`: of as many tokens as is likely."""
    import numpy as np

    recorded = told if isinstance(told, dict) else {"text": told}
    text = recorded.get("text", recorded.get("content"))
    if not isinstance(text, str):
        raise ValueError(f"has the completion {brief(told)}; write a text, or an object with a 'text'")
    turns = None if recorded.get("turns") is None else _turns(recorded["turns"], folder)
    if num_tokens is None:
        num_tokens = _likely(text) if turns is None else max((turn.stop for turn in turns), default=0)
    return Completion(
        text=text,
        token_ids=np.zeros(num_tokens, np.int32),
        logprobs=np.zeros(num_tokens, np.float32),
        finish_reason=recorded.get("finish_reason") or "stop",
        policy_version=recorded.get("policy_version") or 0,
        turns=turns,
        outcome=recorded.get("outcome") or {},
    )


def _likely(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // 4) + 1


def _turns(recorded: Sequence[Mapping[str, Any]], folder: Path) -> list[Turn]:
    """Makes the turns of an episode; where it is not told in which tokens each was said, they come one behind the other."""
    turns: list[Turn] = []
    for turn in recorded:
        start = turn.get("start", turns[-1].stop if turns else 0)
        stop = turn.get("stop", start + _likely(turn["text"]))
        if not (type(start) is type(stop) is int and 0 <= start <= stop):
            raise ValueError(f"has a turn from token {brief(start)} to {brief(stop)}; write whole numbers in order")
        shown = turn.get("observation")
        if shown is not None:
            shown = Observation(text=shown, images=[_picture(value, folder) for value in turn.get("images") or []])
        turns.append(Turn(text=turn["text"], start=start, stop=stop, observation=shown))
    return turns


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
