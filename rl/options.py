"""Reads the fields of option classes: bounds, resume markers, defaults. An option is declared once, all else follows from it.

A subclass may give an option another default: the bound and the marker of the first declaration stay.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Annotated, Any, get_origin

from annotated_types import Ge, Gt

from rollout.config import RESUMABLE


def config_dict(config: Any) -> dict[str, Any]:
    """A config as JSON has it: the content of `config.json` and of checkpoints."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain


def check_bounds(config: Any) -> None:
    """Checks each option against the bound in its annotation; None has no bound.

    Raises:
        ValueError: An option is out of bounds. Names it and its value.
    """
    for name, value, marks in annotated_options(config):
        for mark in marks if value is not None else ():
            if isinstance(mark, Gt) and not value > mark.gt:
                raise ValueError(f"{name} must be > {mark.gt}, got {value}")
            if isinstance(mark, Ge) and not value >= mark.ge:
                raise ValueError(f"{name} must be >= {mark.ge}, got {value}")


def resumable_options(config: Any) -> set[str]:
    """Dotted names of the options, and of the sections, that may differ between a run and its resume."""
    return {name for name, _, marks in annotated_options(config) if RESUMABLE in marks}


def annotated_options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yields dotted name, value and annotation marks of each option; a section comes before its options."""
    marks = _field_marks(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        yield prefix + field.name, value, marks[field.name]
        if is_dataclass(value):
            yield from annotated_options(value, f"{prefix}{field.name}.")


def first_defaults(config: Any) -> dict[str, Any]:
    """The default of each option in the class that declares it first, as JSON has it; sections are nested.

    An option that is newer than a checkpoint had the effect of its first default there, whatever a recipe's default is now. Options
    that a recipe itself declares have none: a checkpoint without them is another recipe's.
    """
    library = [
        cls for cls in type(config).__mro__ if is_dataclass(cls) and cls.__module__.split(".")[0] in ("rl", "rollout")
    ]
    declared = {field.name: field for cls in library for field in fields(cls)}
    defaults: dict[str, Any] = {}
    for name, field in declared.items():
        if is_dataclass(section := getattr(config, name)):
            defaults[name] = first_defaults(section)
        elif field.default is not MISSING:
            defaults[name] = json.loads(json.dumps(field.default, default=str))
    return defaults


def _field_marks(config_type: type) -> dict[str, tuple[Any, ...]]:
    marks: dict[str, tuple[Any, ...]] = {field.name: () for field in fields(config_type)}
    for cls in config_type.__mro__:
        for name, annotation in inspect.get_annotations(cls, eval_str=True).items():
            if get_origin(annotation) is Annotated and name in marks:
                marks[name] += annotation.__metadata__
    return marks
