"""Boxes and points that are not where those of a reference are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from rewards.text.boxes import BOX, POINT, shapes_of_reference
from rewards.text.lenient import number_of

SIDE = 1000  # coordinates run from 0 to it
NEAR = 200  # thousandths; a point nearer than this may be paid by a tolerance
OVERLAP = 0.3  # a box of a greater IoU may be

Place = tuple[float, ...]


def other_places(answer: Any, value: Any) -> Iterator[Any]:
    """Yields a value with its first shape elsewhere, without its last shape, and with two labels exchanged.

    Args:
        answer: The reference.
        value: The reference, or the centres of its boxes, in lists and mappings.
    """
    right = _places(answer)
    shapes = list(_paths(value)) if right else []
    if not shapes:
        return
    moved = _elsewhere(_at(value, shapes[0]), right)
    if moved is not None:
        yield _with(value, shapes[0], moved)
    if len(shapes) > 1 and isinstance(value, list) and len(value) == len(shapes):
        yield value[:-1]
        labels = [item.get("label") if isinstance(item, dict) else None for item in value]
        other = next((place for place, label in enumerate(labels) if label and label != labels[0]), None)
        if labels[0] and other is not None:
            exchanged = [dict(item) for item in value]
            exchanged[0]["label"], exchanged[other]["label"] = labels[other], labels[0]
            yield exchanged


def _places(answer: Any) -> list[Place]:
    for size in (BOX, POINT):
        try:
            return [shape.place for shape in shapes_of_reference(answer, size) if shape.place]
        except ValueError:
            continue
    return []


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yields the keys that lead to each list of two or four numbers."""
    if isinstance(value, list) and len(value) in (BOX, POINT) and all(number_of(each) is not None for each in value):
        yield ()
        return
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from ((key, *rest) for rest in _paths(each))


def _at(value: Any, path: Sequence[Any]) -> Place:
    for key in path:
        value = value[key]
    return tuple(number_of(each) or 0.0 for each in value)


def _with(value: Any, path: Sequence[Any], place: Place) -> Any:
    """Returns a copy of a value with another place at the end of a path."""
    if not path:
        return list(place)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], place)
    return copy


def _elsewhere(place: Place, right: Sequence[Place]) -> Place | None:
    """Returns a place of the same size, else a small one, away from all right ones; `None` where they fill the picture."""
    sizes: tuple[Place, ...]
    sizes = ((place[2] - place[0], place[3] - place[1]), (20, 20)) if len(place) == BOX else ((2, 2),)
    for width, height in sizes:
        for left, top in product((0, SIDE - width), (0, SIDE - height)):
            box = (left, top, left + width, top + height)
            if all(_is_away(box, each) for each in right):
                return box if len(place) == BOX else (left + 1, top + 1)
    return None


def _is_away(box: Place, other: Place) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if len(other) == POINT:
        return max(abs(x - other[0]), abs(y - other[1])) >= NEAR
    if other[0] <= x <= other[2] and other[1] <= y <= other[3]:
        return False
    across, down = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    shared = max(across, 0) * max(down, 0)
    areas = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other))
    return shared < OVERLAP * (areas - shared)
