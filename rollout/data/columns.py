"""Values of a row by the names of columns, nested ones too, and errors that name the columns there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.data.conversations import from_json, tools_of
from rollout.data.media import UnreadablePrompt

_MISSING: Any = object()


class Unmapped(UnreadablePrompt):
    """A row of which `to_prompt` makes no prompt. If no row can be mapped, the function is wrong and not the rows."""


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a column, or of `reward_model.ground_truth` inside one; None if the row has none."""
    value = _found(row, name)
    return None if value is _MISSING else value


def _found(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for step in name.split("."):
        value = from_json(value) if isinstance(value, str) else value
        if isinstance(value, list | tuple) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            value = value.get(step, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def column_of(row: Mapping[str, Any], name: str, named: str) -> Any:
    """Returns the value of a column, which may be nested.

    Args:
        row: The row.
        name: The column.
        named: The option that names it, for the error.

    Raises:
        Unmapped: If there is no such column.
    """
    value = _found(row, name)
    if value is not _MISSING:
        return value
    head = name.partition(".")[0]
    inside = f", and {head!r} {row[head]!r:.80}" if head in row else ""
    raise Unmapped(
        f"to_prompt asks for column {name!r}, but the dataset has {', '.join(map(repr, row))}{inside}: name one of these by "
        f"{named}; chat_rows (--layout chat_rows) reads the columns of TRL, verl, EasyR1, ms-swift, LLaMA-Factory and LLaVA"
    )


def template_of(variables: Any = None, tools: Any = None) -> dict[str, Any]:
    """Returns variables for the chat template.

    Args:
        variables: A mapping or its JSON text, or None.
        tools: As `tools_of` takes them.

    Raises:
        UnreadablePrompt: If the variables are no mapping.
    """
    found = from_json(variables) if isinstance(variables, str) and variables else variables or {}
    if not isinstance(found, Mapping):
        raise UnreadablePrompt(f"its template variables are {variables!r:.80}: map their names to values")
    named = {name: value for name, value in found.items() if value is not None}
    listed = tools_of(tools)
    return {**named, "tools": listed} if listed else named


def as_sequence(value: Any) -> Sequence[Any]:
    """Returns the items of a list, one value as a list, and nothing for None."""
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)
