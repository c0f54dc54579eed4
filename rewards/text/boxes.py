"""Boxes and points in a response, in Qwen3-VL's coordinates: 0 to 1000 across and down, for every picture size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rewards.text.answer_text import after_thinking, normalised
from rewards.text.labels import first_named_in, named_by
from rewards.text.lenient import number_of, value_at
from rewards.text.places import Span, answer_of, spans_of

if TYPE_CHECKING:
    import numpy as np

LONGEST = 100_000  # characters after the thoughts; a longer text is no answer
BOX, POINT = 4, 2  # numbers of coordinates

_BOX_KEYS = (
    *("bbox_2d", "bbox", "box_2d", "box", "bounding_box", "boundingbox", "position", "coordinates", "coordinate"),
    *("location", "region", "rect", "start_box"),
)
_POINT_KEYS = (
    "point_2d",
    "point",
    "coordinate",
    "coordinates",
    "position",
    "location",
    "center",
    "centre",
    "start_box",
)
_KEYS = {BOX: _BOX_KEYS, POINT: (*_POINT_KEYS, *(key for key in _BOX_KEYS if key not in _POINT_KEYS))}
_SCALARS = {
    BOX: (
        ("x1", "y1", "x2", "y2"),
        ("xmin", "ymin", "xmax", "ymax"),
        ("x_min", "y_min", "x_max", "y_max"),
        ("left", "top", "right", "bottom"),
    ),
    POINT: (("x", "y"),),
}
_SIDES = ("x", "y", "width", "height")
_CORNERS = (("top_left", "bottom_right"), ("topleft", "bottomright"), ("top-left", "bottom-right"))
_LABELS = ("label", "class", "category", "object", "name", "description", "ref")
_SIZES = ("size", "resolution", "shape", "dimension", "color")  # keys of numbers that are no place


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
    context: str = field(default="", compare=False)
    """The words before it, or its key, which name it where it has no label."""
    behind: str = field(default="", compare=False)
    """The words behind it, which name it where those before do not name every shape."""


def shapes_of_text(text: str, size: int) -> list[Shape]:
    r"""Returns the shapes that a response gives as its answer.

    They are searched in the last `\boxed{...}` or `<answer>...</answer>`, else in the last fenced blocks, else in all of the
    text. They are lists and mappings in the spelling of JSON or Python, pairs `(x, y)`, two of which make a box, `x=..., y=...`,
    or lines of bare numbers. Of several, the last counts with those before it, up to words that correct or conclude: "no",
    "or", "but", "so", and others. A list that is cut off, or has a key twice, gives no shapes.

    Args:
        text: The response.
        size: `BOX` or `POINT`; as points, boxes stand for their centres.

    Returns:
        The shapes, including those without a place; none where nothing can be read.
    """
    text = after_thinking(text)
    if len(text) > LONGEST:
        return []
    try:
        return _shapes_of_spans(spans_of(answer_of(text), size), size)
    except (ValueError, RecursionError):
        return []


def shapes_of_reference(answer: Any, size: int) -> list[Shape]:
    """Returns the shapes of a reference: one shape, a list of shapes, or its JSON; an empty list means that there is no object.

    Raises:
        ValueError: One has no place, or all lie within the first thousandth, as in coordinates from 0 to 1; the message lists
            valid forms.
    """
    try:
        value = _read(answer)
        shapes = [Shape(place=None)] if size == POINT and _holds_box(value) else _shapes(value, size)
    except (ValueError, RecursionError):
        shapes = [Shape(place=None)]
    places = [shape.place for shape in shapes]
    if any(place is None or _is_share(place) for place in places) or (not places and answer == {}):
        form = "[left, top, right, bottom]" if size == BOX else "[x, y]"
        raise ValueError(f"give {form}, or a list of these, from 0 to 1000 (thousandths of the picture, not pixels)")
    return shapes


def share_found(
    found: Sequence[Shape],
    wanted: Sequence[Shape],
    worth: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> float:
    """Returns the worth of the best one-to-one pairs of found and wanted shapes, over the larger of both numbers.

    Where the wanted shapes have different labels, a found one pairs only with those of the label that it names. Where they have
    one label or none, a found one may have no label, but none of something else.

    Args:
        found: N shapes of a response. One without a place counts, but earns nothing. More than 10 · M + 100 are no answer.
        wanted: M shapes of a reference, of one size, at least one.
        worth: Maps places [K, size] and [M, size] to the worth of each pair, [K, M], from 0 to 1.
    """
    import numpy as np

    placed = [shape for shape in found if shape.place is not None]
    if not placed or len(found) > 10 * len(wanted) + 100:
        return 0.0
    worth_KM = worth(np.array([shape.place for shape in placed]), np.array([shape.place for shape in wanted]))
    if worth_KM.size == 1:
        return float(worth_KM[0, 0]) / len(found) if _may_pair(placed, wanted)[0][0] else 0.0
    from scipy.optimize import linear_sum_assignment

    worth_KM = np.where(_may_pair(placed, wanted), worth_KM, 0.0)
    return float(worth_KM[linear_sum_assignment(worth_KM, maximize=True)].sum() / max(len(found), len(wanted)))


def _may_pair(found: Sequence[Shape], wanted: Sequence[Shape]) -> list[list[bool]]:
    names = {shape.label for shape in wanted if shape.label}
    has_several = len(names) > 1
    named = [first_named_in(shape.context, names) if has_several and not shape.label else None for shape in found]
    if has_several and not all(named):
        behind = [first_named_in(shape.behind, names) for shape in found]
        named = behind if all(behind) else named
    rows = []
    for shape, name in zip(found, named, strict=True):
        if shape.label:
            name = named_by(shape.label, names)
        elif not has_several:
            name = next(iter(names), None)
        rows.append([not other.label or other.label == name for other in wanted])
    return rows


def _read(answer: Any) -> Any:
    if not isinstance(answer, str):
        return answer
    try:
        return json.loads(answer, object_pairs_hook=_object)
    except ValueError:
        text = answer.strip()
        value, end = value_at(text, 0) if text[:1] in ("[", "{", "(") and text else (None, 0)
        if end != len(text):
            raise ValueError("something stands behind the list") from None
        return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _is_share(place: tuple[float, ...]) -> bool:
    """Returns whether coordinates are shares of the picture, from 0 to 1, rather than thousandths."""
    return max(place) <= 1 and (len(place) == BOX or any(number % 1 for number in place))


def _shapes_of_spans(spans: list[Span], size: int) -> list[Shape]:
    """Returns the shapes of the values in a text. Plain pairs make the corners of boxes, where a text has no whole boxes."""
    found: list[tuple[bool, list[Shape]]] = []
    pairs: list[Span] = []
    for span in spans:
        if size == BOX and _is_pair(span.value):
            pairs.append(span)
            continue
        shapes = _shapes(span.value, size)
        is_other_size = size == POINT and not isinstance(span.value, dict) and _is_flat(span.value, BOX)
        found.append(
            (
                is_other_size,
                [replace(shape, context=shape.context or span.context, behind=span.behind) for shape in shapes],
            )
        )
    corners = [
        Shape(
            place=_place([number for span in pairs[i : i + 2] for number in span.value], BOX),
            context=pairs[i].context,
            behind=pairs[min(i + 1, len(pairs) - 1)].behind,
        )
        for i in range(0, len(pairs), 2)
    ]
    if any(not other and shapes for other, shapes in found):
        return [shape for other, shapes in found if not other for shape in shapes]
    return corners or [shape for _, shapes in found for shape in shapes]


def _is_flat(value: Any, number: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == number and all(number_of(n) is not None for n in value)


def _is_pair(value: Any) -> bool:
    return _is_flat(value, POINT)


def _is_box(value: Any) -> bool:
    """Returns whether a value is four numbers, or two corners."""
    return _is_flat(value, BOX) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_pair, value)))


def _holds_box(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_box, value.values()))
    return _is_flat(value, BOX) or (isinstance(value, list | tuple) and any(map(_holds_box, value)))


def _shapes(value: Any, size: int) -> list[Shape]:
    """Returns the shapes of a value: a shape or a list of them, as coordinates or `{"bbox_2d": [...], "label": ...}`."""
    if isinstance(value, dict):
        return _shapes_of_mapping(value, size)
    if not isinstance(value, list | tuple):
        raise ValueError(f"neither a shape nor a list of shapes: {type(value).__name__}")
    is_one = value and not any(isinstance(item, list | tuple | dict) for item in value)
    if is_one or (size == BOX and _is_box(value)):
        return [Shape(place=_place(value, size))]
    if _named(value):
        return _shapes_of_item(value, size)
    return [shape for item in value for shape in _shapes_of_item(item, size)]


def _shapes_of_item(item: Any, size: int) -> list[Shape]:
    if isinstance(item, dict):
        return _shapes_of_mapping(item, size)
    if name := _named(item):
        return [Shape(place=_place(place, size), label=normalised(name)) for place in item if place != name]
    return [Shape(place=_place(item, size))]


def _named(value: Any) -> str:
    """Returns the name in a pair of name and coordinates, `("cat", (1, 2, 3, 4))`; else `""`."""
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not any(isinstance(item, list | tuple) for item in value)
    ):
        return ""
    return next((item for item in value if isinstance(item, str) and number_of(item) is None), "")


def _shapes_of_mapping(mapping: dict[str, Any], size: int) -> list[Shape]:
    """Returns the shape of a mapping, and those in its other keys: a second box is a second answer, whatever its key."""
    given = {key: value for key, value in mapping.items() if value is not None}
    if len([key for key in given if key in _KEYS[size][:2]]) == 2:
        return [Shape(place=None)]
    for first, last in _CORNERS:
        if first in given and last in given:
            given["bbox"] = [given.pop(first), given.pop(last)]
    label = next((normalised(given[key]) for key in _LABELS if isinstance(given.get(key), str)), None)
    if "arguments" in given:
        label = None  # the name of a tool
    rest = dict(given)
    shapes: list[Shape] = []
    key = next((key for key in _KEYS[size] if isinstance(given.get(key), list | tuple | dict | str)), None)
    if key is not None and not (isinstance(given[key], str) and number_of_text(given[key]) is None):
        shapes = _shapes_of_key(rest.pop(key), size)
    elif keys := next((keys for keys in _SCALARS[size] if all(name in given for name in keys)), None):
        shapes = [Shape(place=_place([given[name] for name in keys], size))]
    elif size == BOX and all(name in given for name in _SIDES):
        x, y, width, height = (number_of(given[name]) or 0.0 for name in _SIDES)
        shapes = [Shape(place=_place([x, y, x + width, y + height], size))]
    shapes = [replace(shape, label=shape.label or label) for shape in shapes]
    others = [shape for key, value in rest.items() for shape in _shapes_beside(key, value, size, bool(shapes))]
    if not shapes and not others and not any(value == [] for value in rest.values()):
        return [Shape(place=None)]
    if not shapes:
        others = [replace(shape, label=shape.label or label) for shape in others]
    return shapes + others


def number_of_text(text: str) -> list[float] | None:
    """Returns numbers between commas or blanks, with or without brackets; `None` if a text is something else."""
    words = text.strip().strip("[]()").replace(",", " ").split()
    numbers = [number_of(word) for word in words[:9]]
    return None if None in numbers or not numbers else [number for number in numbers if number is not None]


def _shapes_of_key(value: Any, size: int) -> list[Shape]:
    """Returns the shapes under a key for coordinates: one of them, a list, or numbers in quotation marks."""
    if isinstance(value, str):
        value = number_of_text(value)
    if isinstance(value, dict):
        return _shapes_of_mapping(value, size)
    if isinstance(value, list) and value and all(isinstance(item, list | tuple | dict) for item in value):
        return _shapes(value, size)
    return [Shape(place=_place(value, size))]


def _shapes_beside(key: str, value: Any, size: int, is_beside: bool) -> list[Shape]:
    """Returns the shapes under a key that is not one for coordinates: its name may be that of the object."""
    if any(name in key for name in _SIZES):
        return []
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):  # arguments of a call, as JSON in a text
        try:
            value, _ = value_at(value.strip(), 0)
        except ValueError:
            return []
    if isinstance(value, dict):
        inner = _shapes_of_mapping(value, size)
        return [shape for shape in inner if shape.place is not None or (not is_beside and len(inner) > 1)]
    if not isinstance(value, list | tuple) or not value:
        return []
    if is_beside and size == POINT and _is_flat(value, BOX):
        return []  # the box around the point
    shapes = [shape for shape in _shapes(value, size) if shape.place is not None]
    return [replace(shape, context=shape.context or key) for shape in shapes]


def _place(value: Any, size: int) -> tuple[float, ...] | None:
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_pair, value)):
        value = [number for pair in value for number in pair]
    if not isinstance(value, list | tuple) or len(value) not in (size, BOX):
        return None
    numbers = [number for number in map(number_of, value) if number is not None and 0 <= number <= 1000]
    if len(numbers) < len(value):
        return None
    if len(numbers) == BOX:
        left, top, right, bottom = numbers
        if not (left < right and top < bottom):
            return None
        return tuple(numbers) if size == BOX else ((left + right) / 2, (top + bottom) / 2)
    return tuple(numbers)
