"""Reader of recorded completions, as groups: those in a run's `samples/`, or any table of completions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from rewards.workers.call import describe
from rollout.types import Completion, Group, Observation, Prompt, Turn

FORMATS = "give a run's samples folder, one of its step_*.jsonl, or another .jsonl or .parquet file"
_FIELDS = {
    "prompt_id",
    "task",
    "images",
    "image_sizes",
    "videos",
    "columns",
}  # columns that are other fields of a Prompt, or none


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of a table's columns, where they are not the usual ones."""

    completion: str | None = None
    """The response, a text or a list of them; default: `completions`, `completion` or `text`."""
    question: str | None = None
    """The question, a text or chat messages; default: `messages` or `prompt`, if there is one."""
    answer: str | None = None
    """The reference; default: `answer`, if there is one."""
    num_tokens: str | None = None
    """The number of tokens of the completion, a number or a list of them; default: `num_tokens`, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Content of a table."""

    groups: list[Group]
    """One for each row."""
    num_guessed: int
    """Completions whose number of tokens is not in the table."""


def read_groups(path: Path, columns: Columns = Columns(), limit: int = 0) -> list[Group]:
    """Returns only the groups of `read_recorded`."""
    return read_recorded(path, columns, limit).groups


def read_recorded(path: Path, columns: Columns = Columns(), limit: int = 0) -> Recorded:
    """Reads prompts and completions; each row is a group.

    Other columns become `Prompt.columns`; a run's samples have those that JSON can hold. The column `images` names files
    beside the table; videos are not recorded. Only the number of tokens is recorded: ids and log-probabilities are as many
    zeros. A missing number is guessed: one token for every four bytes of the response, and an end token.

    A run saves copies of at most a megapixel. They are enlarged to the images' sizes, so verifiers that work in pixels agree with
    the run; a judge sees less detail than there.

    Args:
        path: A folder with `step_*.jsonl`, or with `samples/` in it; or one file, .jsonl or .parquet.
        columns: Names that are not the usual ones.
        limit: Rows to read; 0: all.

    Raises:
        ValueError: There is nothing to read, or a row has another form.
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
    """Yields the rows of a table and their numbers, from 1; for JSONL, line numbers."""
    if file.suffix == ".parquet":
        yield from enumerate(_parquet(file), 1)
        return
    if file.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{file} has a format that cannot be read here; {FORMATS}")
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
    except Exception as error:  # from pyarrow, datasets or the file system
        raise ValueError(f"{file} cannot be read as Parquet: {describe(error)}") from error


def _group(row: Mapping[str, Any], columns: Columns, folder: Path, name: str) -> tuple[Group, int]:
    """Returns the group of a row, and the number of its completions without a number of tokens.

    Raises:
        ValueError: The row has another form; the message continues "row 3 of FILE".
    """
    import numpy as np

    completion = _column(row, columns.completion, "completions", "completion", "text")
    if completion is None:
        raise ValueError(f"has no column 'completions', 'completion' or 'text'; it has {list(row)}")
    question = _column(row, columns.question, "messages", "prompt")
    answer = _column(row, columns.answer, "answer")
    tokens = _column(row, columns.num_tokens, "num_tokens")
    known = {completion, question, answer, tokens} | _FIELDS
    picture = partial(_picture, folder, row.get("image_sizes") or {})
    prompt = Prompt(
        id=str(row.get("prompt_id", row.get("id", name))),
        messages=_messages(row[question]) if question else [],
        images=[picture(value) for value in row.get("images") or []],
        answer=row[answer] if answer else None,
        task=str(row.get("task", "default")),
        columns={key: value for key, value in row.items() if key not in known} | dict(row.get("columns") or {}),
        template=row["template"] if isinstance(row.get("template"), dict) else {},
    )
    responses = row[completion] if isinstance(row[completion], list) else [row[completion]]
    numbers = _numbers(row[tokens] if tokens else None, responses)
    completions = [_completion(each, number, picture) for each, number in zip(responses, numbers, strict=True)]
    return Group(prompt=prompt, prompt_token_ids=np.zeros(1, np.int32), completions=completions), numbers.count(None)


def _numbers(column: Any, responses: Sequence[Any]) -> list[int | None]:
    """Returns the number of tokens of each response: from the response itself, else from the column, else `None`."""
    of_column = column if isinstance(column, list) else [column] * len(responses)
    if len(of_column) != len(responses):
        raise ValueError(f"has {len(responses)} completions and {len(of_column)} numbers of tokens; write one for each")
    inside = [each.get("num_tokens") if isinstance(each, dict) else None for each in responses]
    numbers = [outer if inner is None else inner for inner, outer in zip(inside, of_column, strict=True)]
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


def _completion(response: Any, num_tokens: int | None, picture: Callable[[Any], Any]) -> Completion:
    """Returns the completion of a text, a chat message, or a run's record; `num_tokens` is guessed where it is `None`."""
    import numpy as np

    recorded = response if isinstance(response, dict) else {"text": response}
    text = recorded.get("text", recorded.get("content"))
    if not isinstance(text, str):
        raise ValueError(f"has the completion {brief(response)}; write a text, or an object with a 'text'")
    turns = None if recorded.get("turns") is None else _turns(recorded["turns"], picture)
    if num_tokens is None:
        num_tokens = _guessed_tokens(text) if turns is None else max((turn.stop for turn in turns), default=0)
    return Completion(
        text=text,
        token_ids=np.zeros(num_tokens, np.int32),
        logprobs=np.zeros(num_tokens, np.float32),
        finish_reason=recorded.get("finish_reason") or "stop",
        policy_version=recorded.get("policy_version") or 0,
        turns=turns,
        outcome=recorded.get("outcome") or {},
        thinking=recorded.get("thinking") is True,
    )


def _guessed_tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // 4) + 1


def _turns(recorded: Sequence[Mapping[str, Any]], picture: Callable[[Any], Any]) -> list[Turn]:
    """Returns the turns of an episode; turns without token positions follow one another."""
    turns: list[Turn] = []
    for turn in recorded:
        start = turn.get("start", turns[-1].stop if turns else 0)
        stop = turn.get("stop", start + _guessed_tokens(turn["text"]))
        if not (type(start) is type(stop) is int and 0 <= start <= stop):
            raise ValueError(f"has a turn from token {brief(start)} to {brief(stop)}; write whole numbers in order")
        shown = turn.get("observation")
        if shown is not None:
            shown = Observation(text=shown, images=[picture(value) for value in turn.get("images") or []])
        turns.append(Turn(text=turn["text"], start=start, stop=stop, observation=shown))
    return turns


def _picture(folder: Path, sizes: Mapping[str, Mapping[str, Sequence[int]]], value: Any) -> Any:
    """Returns a PIL image of a file's name, of `{"bytes": ...}`, or of an image that `datasets` has decoded."""
    from PIL import Image

    if isinstance(value, Image.Image):
        return value
    try:
        with Image.open(BytesIO(value["bytes"]) if isinstance(value, dict) else folder / value) as image:
            picture = image.copy()
    except (OSError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise ValueError(f"has an image that cannot be opened: {describe(error)}") from error
    if isinstance(value, str) and value in sizes:
        width, height = sizes[value]["size"]
        picture = picture.resize((width, height))
        picture.info["original_size"] = tuple(sizes[value]["original_size"])
    return picture
