"""Boxes and names that ms-swift writes beside a conversation, put in the places of `<ref-object>` and `<bbox>`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rollout.data.media import UnreadablePrompt, open_images

SCALE = 1000
"""Coordinates of Qwen3-VL: thousandths of the picture."""
OUTSIDE = 0.01
"""Part of a picture's size by which a box may reach over its edge. The rest is cut."""
_PLACES = re.compile(r"<(ref-object|bbox)>")


def with_objects(
    messages: Sequence[Mapping[str, Any]], objects: Any, images: Sequence[Any]
) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Returns the messages with names and boxes in their places, and the boxes that have none: the answer, if it is not shown.

    Args:
        messages: Chat messages.
        objects: `{"ref": [names], "bbox": [boxes or points], "bbox_type": "real" or "norm1", "image_id": [...]}`, or None.
        images: The row's images, in which boxes of the type `real` are measured.

    Raises:
        UnreadablePrompt: If there are more places than names or boxes, or a box cannot be read.
    """
    if objects is None:
        return [dict(message) for message in messages], []
    if not isinstance(objects, Mapping):
        raise UnreadablePrompt(
            f"its objects are a {type(objects).__name__}: give them as {{'ref': [...], 'bbox': [...]}}"
        )
    boxes = _scaled(objects, images)
    left = {"ref-object": iter(objects.get("ref") or ()), "bbox": iter(map(str, boxes))}

    def put(place: re.Match[str]) -> str:
        found = next(left[place[1]], None)
        if found is None:
            raise UnreadablePrompt(f"it has more places <{place[1]}> than objects: make the numbers equal")
        return str(found)

    filled = [{**message, "content": _filled(message.get("content"), put)} for message in messages]
    return filled, boxes[len(boxes) - len(list(left["bbox"])) :]


def _filled(content: Any, put: Any) -> Any:
    if isinstance(content, str):
        return _PLACES.sub(put, content)
    if not isinstance(content, list):
        return content
    return [
        {**part, "text": _PLACES.sub(put, part["text"])} if isinstance(part.get("text"), str) else part
        for part in content
    ]


def _scaled(objects: Mapping[str, Any], images: Sequence[Any]) -> list[list[float]]:
    """Returns the boxes and points in thousandths of their pictures."""
    given = objects.get("bbox") or []
    if not given:
        return []
    if objects.get("bbox_type") == "norm1":
        sizes: Iterator[tuple[float, float]] = iter([(1.0, 1.0)] * len(given))
    else:
        numbers = objects.get("image_id") or [0] * len(given)
        if len(numbers) != len(given) or any(not 0 <= number < len(images) for number in numbers):
            raise UnreadablePrompt(
                f"the boxes are of the images {numbers}, but the row has {len(images)}: correct image_id"
            )
        opened = {number: open_images([images[number]])[0].size for number in set(numbers)}
        sizes = iter(opened[number] for number in numbers)
    return [_in_thousandths(box, size) for box, size in zip(given, sizes, strict=True)]


def _in_thousandths(box: Any, size: tuple[float, float]) -> list[float]:
    if (
        not isinstance(box, list | tuple)
        or len(box) not in (2, 4)
        or not all(isinstance(edge, int | float) for edge in box)
    ):
        raise UnreadablePrompt(f"a box must be [x, y] or [left, top, right, bottom], got {box!r:.80}")
    if any(not -OUTSIDE <= edge / size[place % 2] <= 1 + OUTSIDE for place, edge in enumerate(box)):
        raise UnreadablePrompt(
            f"the box {box} is outside of its picture of {size[0]:g} × {size[1]:g}: correct it, its image_id or its bbox_type"
        )
    edges = [round(min(max(SCALE * edge / size[place % 2], 0.0), float(SCALE)), 1) for place, edge in enumerate(box)]
    if len(edges) == 4:  # corners may be in any order
        edges = [min(edges[0], edges[2]), min(edges[1], edges[3]), max(edges[0], edges[2]), max(edges[1], edges[3])]
    return edges
