"""Boxes and points in a response, in Qwen3-VL's coordinates: 0 to 1000 across and down, for every picture size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.text.answer_text import after_thinking, last_block, normalised, short_answer_or_all
from rewards.text.patterns import Pattern

if TYPE_CHECKING:
    import numpy as np

LONGEST = 100_000  # characters after the thoughts; a longer text is no answer
BOX, POINT = 4, 2  # numbers of coordinates

_KEYS = {BOX: ("bbox_2d", "bbox"), POINT: ("point_2d", "point")}
_BRACKET = Pattern(r"[\[\]{}]")
_BETWEEN = Pattern(r"(?:[\s,;]|and)*")
_PAIR = Pattern(r"\(\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*,\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A box or a point."""

    place: tuple[float, ...] | None
    """(left, top, right, bottom) or (x, y), from 0 to 1000.

    `None` for an impossible place: a box without an area, a coordinate out of range, a wrong number of coordinates, or values
    that are no numbers.
    """
    label: str | None = None
    """The normalised label; `None` if there is none."""


def shapes_of_text(text: str, size: int) -> list[Shape]:
    r"""Returns the shapes that a response gives as its answer.

    They are searched in the last `\boxed{...}` or `<answer>...</answer>`, else in the last fenced block, else in all of the
    text. They are the last JSON list or object, with those right before it if only commas are in between. Without JSON they
    are pairs `(x, y)`, two of which make a box. A list that is cut off, or has a key twice, gives no shapes.

    Args:
        text: The response.
        size: `BOX` or `POINT`.

    Returns:
        The shapes, including those without a place; none where nothing can be read.
    """
    text = after_thinking(text)
    if len(text) > LONGEST:
        return []
    answer = last_block(short_answer_or_all(text))
    if not _BRACKET.search(answer):
        numbers = [float(number) for pair in _PAIR.findall(answer) for number in pair]
        return [Shape(place=_place(numbers[i : i + size], size)) for i in range(0, len(numbers), size)]
    try:
        return [shape for value in _values(answer) for shape in _shapes(value, size)]
    except (ValueError, RecursionError):
        return []


def shapes_of_reference(answer: Any, size: int) -> list[Shape]:
    """Returns the shapes of a reference: one shape, a list of shapes, or its JSON.

    Raises:
        ValueError: There are none, or one has no place; the message lists valid forms.
    """
    try:
        shapes = _shapes(json.loads(answer) if isinstance(answer, str) else answer, size)
    except (ValueError, RecursionError):
        shapes = []
    if not shapes or any(shape.place is None for shape in shapes):
        form = "[left, top, right, bottom]" if size == BOX else "[x, y]"
        raise ValueError(f"give {form}, or a list of these, from 0 to 1000 (thousandths of the picture, not pixels)")
    return shapes


def share_found(
    found: Sequence[Shape],
    wanted: Sequence[Shape],
    worth: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> float:
    """Returns the worth of the best one-to-one pairs of found and wanted shapes, over the larger of both numbers.

    Args:
        found: N shapes of a response. One without a place counts, but earns nothing. More than 10 · M + 100 are no answer.
        wanted: M shapes of a reference, of one size.
        worth: Maps places [K, size] and [M, size] to the worth of each pair, [K, M], from 0 to 1. Pairs with different labels
            are worth 0.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    placed = [shape for shape in found if shape.place is not None]
    if not placed or len(found) > 10 * len(wanted) + 100:
        return 0.0
    worth_KM = worth(np.array([shape.place for shape in placed]), np.array([shape.place for shape in wanted]))
    other_KM = [[None not in (a.label, b.label) and a.label != b.label for b in wanted] for a in placed]
    worth_KM = np.where(other_KM, 0.0, worth_KM)
    return float(worth_KM[linear_sum_assignment(worth_KM, maximize=True)].sum() / max(len(found), len(wanted)))


def _values(answer: str) -> list[Any]:
    """Returns the values of a JSON text, or else of the JSON at the end of a text."""
    try:
        return [json.loads(answer, object_pairs_hook=_object)]
    except ValueError:
        return list(json.loads(f"[{','.join(_last_lists(answer))}]", object_pairs_hook=_object))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _shapes(value: Any, size: int) -> list[Shape]:
    """Returns the shapes of a JSON value: a shape or a list of them, as coordinates or `{"bbox_2d": [...], "label": ...}`."""
    if not isinstance(value, list | tuple | dict):
        raise ValueError(f"neither a shape nor a list of shapes: {type(value).__name__}")
    is_one = isinstance(value, dict) or (value and not any(isinstance(item, list | tuple | dict) for item in value))
    return [_shape(item, size) for item in ([value] if is_one else value)]


def _shape(item: Any, size: int) -> Shape:
    if not isinstance(item, dict):
        return Shape(place=_place(item, size))
    places = [item[key] for key in _KEYS[size] if item.get(key) is not None]
    label = item.get("label")
    return Shape(
        place=_place(places[0], size) if len(places) == 1 else None,
        label=normalised(label) if isinstance(label, str) else None,
    )


def _place(value: Any, size: int) -> tuple[float, ...] | None:
    if not isinstance(value, list | tuple) or len(value) != size:
        return None
    if not all(type(number) in (int, float) and 0 <= number <= 1000 for number in value):  # NaN is not >= 0
        return None
    if size == BOX and not (value[0] < value[2] and value[1] < value[3]):
        return None
    return tuple(map(float, value))


def _last_lists(text: str) -> list[str]:
    """Returns the last list or object of a text, as JSON, preceded by those right before it.

    Raises:
        ValueError: There is none, or a bracket has no partner, as in a list that was cut off.
    """
    depth, start, spans = 0, 0, list[tuple[int, int]]()
    for match in _BRACKET.finditer(text):
        if match.group() in "[{":
            start = match.start() if depth == 0 else start
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                spans.append((start, match.end()))
        if depth < 0:
            break
    if depth or not spans:
        raise ValueError("no list, or one that is cut off")
    first = len(spans) - 1
    while first and _BETWEEN.fullmatch(text, spans[first - 1][1], spans[first][0]):
        first -= 1
    return [text[start:end] for start, end in spans[first:]]
