"""JSON that fits a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

from rewards.text.answer_text import answer_part, last_block
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

LONGEST = 200_000  # characters; a longer text is no answer, and its validation takes seconds


@with_options
def json_format(*, schema: Mapping[str, Any] | None = None) -> Verifier:
    """Makes a verifier that rewards JSON that fits a JSON Schema.

    The JSON is the last fenced block after the thoughts, or all of that text. It must follow RFC 8259: no NaN, no key twice,
    and nothing before or after it.

    Args:
        schema: The schema. Default: the prompt's column `schema` (a mapping or its JSON); without one, any object or list fits.

    Returns:
        The verifier: 1.0 or 0.0, `UNREAD` for a text that is no JSON; a `Score` with an error where the prompt's schema is no JSON
        Schema. It checks only the form.

    Raises:
        ValueError: `schema` is no JSON Schema.
    """
    if schema is not None:
        _validator(json.dumps(schema))

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        wanted = prompt.columns.get("schema") if schema is None else schema
        try:
            text = wanted if isinstance(wanted, str) else json.dumps(wanted)
            validator = None if wanted is None else _validator(text)
        except (TypeError, ValueError) as error:
            return Score(reward=0.0, error=f"prompt {prompt.id!r} has no valid schema in its column 'schema': {error}")
        block = last_block(answer_part(completion))
        if len(block) > LONGEST:
            return UNREAD
        try:
            value = json.loads(block, parse_constant=_refuse, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            return UNREAD
        try:
            return float(isinstance(value, dict | list) if validator is None else validator.is_valid(value))
        except (ValueError, RecursionError):
            return 0.0

    return verify


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """Returns the validator of a schema, given as JSON."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    loaded = json.loads(schema)
    make = validator_for(loaded)
    try:
        make.check_schema(loaded)
    except SchemaError as error:
        raise ValueError(f"not a JSON Schema: {error.message}") from None
    return make(loaded)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
