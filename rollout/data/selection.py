"""The prompts that `python -m recipes.select` has selected from a set.

Example:
    prompts = selected(prompts_from(read_rows("train.parquet"), geometry3k), "runs/select/train/selected.jsonl")
"""

from __future__ import annotations

import json
from pathlib import Path

from rollout.data.media import UnreadablePrompt
from rollout.data.mixture import Mixture
from rollout.data.prompts import Prompts, Rows, prompts_from


def selected(prompts: Rows, file: str | Path) -> Prompts:
    """Returns the prompts of a set that a selection names.

    Args:
        prompts: The set that was selected from, complete and in the same order.
        file: `selected.jsonl`: a line for each selected prompt, with its `row` and `prompt_id`.

    Raises:
        ValueError: If the file is missing, is no selection, names no prompts, or belongs to another set: then its first or last
            prompt has another id here. Or if `prompts` is a mixture, whose tasks must be selected one by one.
    """
    if isinstance(prompts, Mixture):
        raise ValueError(
            f"a selection belongs to one set of prompts, but this is a mixture: pass selected(prompts, {str(file)!r}) to mixture() "
            "for the task that was selected from"
        )
    prompts = prompts_from(prompts)
    names = read_selection(file)
    rows = sorted(names)
    if rows[-1] >= len(prompts):
        raise ValueError(
            f"{file} names row {rows[-1]}, but there are {len(prompts)} prompts: it belongs to another set"
        )
    for row in (rows[0], rows[-1]):
        try:
            found = prompts[row].id
        except UnreadablePrompt:
            continue  # it has no id to compare
        if found != names[row]:
            raise ValueError(
                f"{file} has prompt {names[row]!r} in row {row}, here it is {found!r}: the selection belongs to "
                "another set or another order"
            )
    return prompts.at(rows)


def read_selection(file: str | Path) -> dict[int, str]:
    """Reads the id of each row that a selection keeps.

    Raises:
        ValueError: If the file is missing, is no selection, or names no prompts.
    """
    try:
        lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
        names = {line["row"]: line["prompt_id"] for line in lines}
    except FileNotFoundError:
        raise ValueError(f"there is no selection {file}: make one by python -m recipes.select") from None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is no selection: each line must have a row and a prompt_id ({reason})") from error
    if not names:
        raise ValueError(f"the selection {file} keeps no prompt: see report.json beside it for why")
    return names
