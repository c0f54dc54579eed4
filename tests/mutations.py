"""Files as somebody else, or a broken disk, may have left them: cut, flipped, changed, or pickles that would run a command."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("cut", "flip", "insert", "drop", "empty", "pickle", "value", "key")
"""`value` and `key` change JSON; in other files they are flips."""
VALUES = (None, -1, 1e308, "", "x", [], {}, True, 0, 2**70, ["a"])


class Command:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def mutate(path: Path, rng: random.Random, canary: Path) -> str:
    """Changes a file, and returns the kind of the change.

    Args:
        path: The file.
        rng: Chooses kind and place.
        canary: What a pickle would touch.
    """
    content, kind = bytearray(path.read_bytes()), rng.choice(KINDS)
    place = rng.randrange(min(len(content), 4096))  # headers are at the beginning
    if kind in ("value", "key") and (changed := _changed_json(content, kind, rng)) is not None:
        content = bytearray(changed)
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "insert":
        content[place:place] = rng.randbytes(5)
    elif kind == "drop":
        del content[place : place + 20]
    elif kind == "empty":
        content.clear()
    elif kind == "pickle":
        content = bytearray(pickle.dumps(Command(canary)))
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return kind


def _changed_json(content: bytes, kind: str, rng: random.Random) -> bytes | None:
    """Returns JSON with another value or without a key; None if the content is none."""
    try:
        value = json.loads(content)
    except ValueError:
        return None
    container, key = rng.choice(list(_places(value))[:400])
    if kind == "value":
        container[key] = rng.choice(VALUES)
    else:
        container.pop(key)
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the container and the key of each value below one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
