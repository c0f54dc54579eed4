"""Points at what is asked for."""

from __future__ import annotations

from rewards.shapes import shapes_of_text, shapes_of_value, share_found
from rewards.types import Score
from rollout.types import Completion, Prompt


def point_in_box(prompt: Prompt, completion: Completion) -> float | Score:
    """Rewards points that lie in the reference's boxes, in Qwen3-VL's coordinates, 0 to 1000.

    Each box is to be hit by a point of its own: the reward is the number of boxes hit over that of boxes or of points, whichever
    are more. Where both sides have labels, they must be the same. Where the response says its points is told by
    `shapes.shapes_of_text`.

    `prompt.answer` is a box, a list of boxes, a list of `{"bbox_2d": [...], "label": ...}`, or its JSON.

    Returns:
        From 0.0 to 1.0; a `Score` with an error where the answer is no such boxes.
    """
    try:
        wanted = shapes_of_value(prompt.answer, 4)
    except ValueError:
        wanted = []
    if not wanted or any(shape.place is None for shape in wanted):
        told = f"point_in_box cannot read the answer {prompt.answer!r} of prompt {prompt.id!r}"
        return Score(reward=0.0, error=f"{told}; give [left, top, right, bottom] from 0 to 1000, or a list of these")
    return share_found(shapes_of_text(completion.text, 2), wanted, _is_inside)


def _is_inside(point: tuple[float, ...], box: tuple[float, ...]) -> float:
    return float(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])
