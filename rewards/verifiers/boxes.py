"""Boxes and points in a response, as Qwen3-VL writes them: from 0 to 1000 across and down, whatever the picture's size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.text.answer_text import after_thinking, last_block, normalised, short_answer_or_all
from rewards.text.patterns import Pattern

if TYPE_CHECKING:
    import numpy as np

LONGEST = 100_000  # characters behind the thoughts; what is longer is no answer
BOX, POINT = 4, 2  # how many coordinates each has

_KEYS = {BOX: ("bbox_2d", "bbox"), POINT: ("point_2d", "point")}
_BRACKET = Pattern(r"[\[\]{}]")
_BETWEEN = Pattern(r"(?:[\s,;]|and)*")
_PAIR = Pattern(r"\(\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*,\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A box or a point.

    Attributes:
        place: (left, top, right, bottom) or (x, y), from 0 to 1000; `None` where it says none that can be: a box without an
            area, a coordinate outside, a wrong number of them, or something else than numbers.
        label: What it is said to show, normalised; `None` where nothing is said.
    """

    place: tuple[float, ...] | None
    label: str | None = None


def shapes_of_text(text: str, size: int) -> list[Shape]:
    r"""Returns the shapes that a response gives as its answer.

    They stand in the last `\boxed{...}` or `<answer>...</answer>`, else in the last fenced block, else in the text; there, they
    are the last JSON list or object (and those right before it, with only commas in between), else its pairs `(x, y)`, two of
    which are a box. A list that is cut off, or holds a key twice, is not read at all.

    Args:
        text: The response.
        size: `BOX` or `POINT`.

    Returns:
        The shapes, those without a place included; none where nothing can be read.
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
        ValueError: There are none, or one has no place; the message says what could be given.
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
    """Returns the worth of the best pairs of found and wanted shapes, each used once, over the number of whichever are more.

    Args:
        found: N shapes of a response; one without a place is worth nothing, but counts, and more than 10 · M + 100 are no answer.
        wanted: M shapes of a reference, of one size.
        worth: From places [K, size] and [M, size] to the worth of each pair, [K, M], from 0 to 1. Where both shapes have
            labels, and others, it is 0.
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
    """Returns the JSON that a text is, or else the JSON that ends it."""
    try:
        return [json.loads(answer, object_pairs_hook=_object)]
    except ValueError:
        return list(json.loads(f"[{','.join(_last_lists(answer))}]", object_pairs_hook=_object))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice, and which of them is meant nobody knows")
    return dict(pairs)


def _shapes(value: Any, size: int) -> list[Shape]:
    """Returns the shapes in JSON: one shape, or a list of shapes, each as coordinates or as `{"bbox_2d": [...], "label": ...}`."""
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
    """Returns the last list or object in a text, outermost brackets included, after those that stand right before it.

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
