"""Whether a response is the JSON that was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

from rewards.text.answer_text import last_block
from rewards.types import Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

LONGEST = 200_000  # characters; what is longer is no answer, and to hold it against a schema takes seconds


@with_options
def json_format(*, schema: Mapping[str, Any] | None = None) -> Verifier:
    """Makes a verifier that rewards JSON that fits a JSON Schema.

    Read is the last fenced block of the response, or all of it where there is none, thoughts aside. It must be JSON as RFC 8259
    has it: no NaN, no key twice, nothing in front or behind.

    Args:
        schema: What it must fit; default: the prompt's column `schema` (a mapping or its JSON), or without one any object or list.

    Returns:
        The verifier: 1.0 or 0.0; a `Score` with an error where the prompt's schema is none. It looks at the form alone.

    Raises:
        ValueError: `schema` is no JSON Schema.
    """
    if schema is not None:
        _validator(json.dumps(schema))

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        wanted = prompt.columns.get("schema") if schema is None else schema
        try:
            validator = (
                None if wanted is None else _validator(wanted if isinstance(wanted, str) else json.dumps(wanted))
            )
        except (TypeError, ValueError) as error:
            return Score(reward=0.0, error=f"prompt {prompt.id!r} has a column 'schema' that is none: {error}")
        block = last_block(completion.text)
        if len(block) > LONGEST:
            return 0.0
        try:
            value = json.loads(block, parse_constant=_refuse, object_pairs_hook=_object)
            return float(isinstance(value, dict | list) if validator is None else validator.is_valid(value))
        except (ValueError, RecursionError):
            return 0.0

    return verify


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """Returns what holds values against a schema, given as JSON."""
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
        raise ValueError("a key stands twice")
    return dict(pairs)
