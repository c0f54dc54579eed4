"""Boxes around what is asked for."""

from __future__ import annotations

from rewards.options import with_options
from rewards.shapes import shapes_of_text, shapes_of_value, share_found
from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt


@with_options
def box_iou(*, threshold: float | None = None) -> Verifier:
    """Makes a verifier that rewards boxes by how well they cover those of the reference, in Qwen3-VL's coordinates, 0 to 1000.

    Boxes of response and reference are paired so that the sum of their intersections over unions is greatest; the reward is that
    sum over the number of boxes, of whichever side has more: a box too many costs as much as one that is missing. Where both
    sides have labels, only boxes of the same label pair. Where the response says them is told by `shapes.shapes_of_text`.

    `prompt.answer` is a box, a list of boxes, a list of `{"bbox_2d": [...], "label": ...}`, or its JSON.

    Args:
        threshold: Then a pair counts 1 from this IoU on, and else 0; default: a pair counts its IoU.

    Returns:
        The verifier: from 0.0 to 1.0; a `Score` with an error where the answer is no such boxes.

    Raises:
        ValueError: The threshold is not above 0 and at most 1.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold of box_iou must be > 0 and <= 1, got {threshold}")

    def worth(one: tuple[float, ...], other: tuple[float, ...]) -> float:
        shared = _iou(one, other)
        return shared if threshold is None else float(shared >= threshold)

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        try:
            wanted = shapes_of_value(prompt.answer, 4)
        except ValueError:
            wanted = []
        if not wanted or any(shape.place is None for shape in wanted):
            told = f"box_iou cannot read the answer {prompt.answer!r} of prompt {prompt.id!r}"
            return Score(
                reward=0.0, error=f"{told}; give [left, top, right, bottom] from 0 to 1000, or a list of these"
            )
        return share_found(shapes_of_text(completion.text, 4), wanted, worth)

    return verify


def _iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
