"""Boxes and points in a response, as Qwen3-VL writes them: coordinates from 0 to 1000, whatever the size of the picture."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.answer_text import last_block, normalised, short_answer_or_all

LONGEST = 200_000  # characters that are read; no answer with places in it is longer
_KEYS = {4: ("bbox_2d", "bbox", "box"), 2: ("point_2d", "point")}
_PAIRS = re.compile(r"\(\s*(\d{1,6}(?:\.\d{0,9})?)\s*,\s*(\d{1,6}(?:\.\d{0,9})?)\s*\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A box (left, top, right, bottom) or a point (x, y).

    Attributes:
        place: Its coordinates; `None` for one that cannot be, such as a box without an area.
        label: What it is said to show, normalised; `None` where nothing is said.
    """

    place: tuple[float, ...] | None
    label: str | None = None


def shapes_of_text(text: str, size: int) -> list[Shape]:
    r"""Returns the boxes (`size` 4) or points (2) that a response ends in; none where it has none that can be read.

    They stand in the last fenced block, in `\boxed{...}` or `<answer>...</answer>`, or in the last list of the text; as JSON
    (`[{"bbox_2d": [...], "label": ...}]`, one object, a list of lists, one list), or as `(x, y), (x, y)`.
    """
    block = last_block(text)
    for candidate in (block, short_answer_or_all(text), _last_list(block)):
        if 0 < len(candidate) <= LONGEST:
            try:
                return shapes_of_value(json.loads(candidate), size)
            except (ValueError, RecursionError):
                continue
    numbers = [float(number) for pair in _PAIRS.findall(block[-LONGEST:]) for number in pair]
    return [_shape(numbers[i : i + size], None, size) for i in range(0, len(numbers), size)]


def shapes_of_value(value: Any, size: int) -> list[Shape]:
    """Returns the shapes in what JSON has given.

    Raises:
        ValueError: It has another form.
    """
    if isinstance(value, str):
        value = json.loads(value)
    is_one = isinstance(value, dict) or (isinstance(value, Sequence) and bool(value) and all(map(_is_number, value)))
    items = [value] if is_one else value
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise ValueError(f"neither a place nor a list of places: {type(value).__name__}")
    return [_of_item(item, size) for item in items]


def matched(worths: Sequence[Sequence[float]]) -> float:
    """Returns the greatest sum of worths [predictions, references] that pairs, each used once, can have."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(worths, maximize=True)
    return float(sum(worths[row][column] for row, column in zip(rows, columns, strict=True)))


def share_found(
    found: Sequence[Shape], wanted: Sequence[Shape], worth: Callable[[tuple[float, ...], tuple[float, ...]], float]
) -> float:
    """Returns the worth of the best pairs of found and wanted shapes, over the number of whichever are more.

    Args:
        found: Of the response; one that cannot be is worth nothing, but counts.
        wanted: Of the reference.
        worth: From 0 to 1, of a pair of places; of different labels, where both have one, it is 0.
    """
    if not found or len(found) > 10 * len(wanted) + 100:
        return 0.0

    def of_pair(one: Shape, other: Shape) -> float:
        is_other_thing = one.label is not None and other.label is not None and one.label != other.label
        return 0.0 if one.place is None or other.place is None or is_other_thing else worth(one.place, other.place)

    return matched([[of_pair(one, other) for other in wanted] for one in found]) / max(len(found), len(wanted))


def _of_item(item: Any, size: int) -> Shape:
    if not isinstance(item, dict):
        return _shape(item, None, size)
    label = item.get("label")
    given = next((item[key] for key in _KEYS[size] if key in item), None)
    return _shape(given, normalised(label) if isinstance(label, str) else None, size)


def _shape(place: Any, label: str | None, size: int) -> Shape:
    is_place = isinstance(place, Sequence) and len(place) == size and all(map(_is_number, place))
    if not is_place or not all(0 <= number <= 1000 for number in place):
        return Shape(place=None, label=label)
    if size == 4 and not (place[0] < place[2] and place[1] < place[3]):
        return Shape(place=None, label=label)
    return Shape(place=tuple(map(float, place)), label=label)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
    )


def _last_list(text: str) -> str:
    """Returns the last list in a text, outermost brackets included; `""` where there is none, or one is cut off."""
    text = text[-LONGEST:]
    if text.count("[") != text.count("]"):
        return ""
    end, depth = text.rfind("]") + 1, 0
    for place in range(end - 1, -1, -1):
        depth += {"]": 1, "[": -1}.get(text[place], 0)
        if depth == 0:
            return text[place:end]
    return ""
