"""Rewards points that lie in the reference's boxes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from rewards.text.answer_text import answer_part
from rewards.text.boxes import BOX, POINT, Shape, shapes_of_reference, shapes_of_text, share_found
from rewards.text.places import says_none
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import numpy as np


@with_options
def point_in_box(*, radius: float | None = None) -> Verifier:
    """Makes a verifier that rewards points that lie in the reference's boxes, in Qwen3-VL's coordinates, 0 to 1000.

    Each box needs a point of its own inside it or on its edge. The reward is the number of boxes hit over the larger of the
    numbers of boxes and points. Labels count as for `box_iou`. `boxes.shapes_of_text` finds the points of a response, also in calls
    of tools; a box stands for its centre.

    `prompt.answer` is a box `[left, top, right, bottom]`, a list of boxes, a list of `{"bbox_2d": [...], "label": ...}`, or one of
    these as JSON; never in pixels or from 0 to 1. With a radius it is points instead: `[x, y]`, a list of these, or with
    `"point_2d"`. An empty list means that there is no such object.

    Args:
        radius: Largest distance of a hit from a point of the reference, in thousandths of the picture's width and height.
            Default: the reference holds boxes.

    Returns:
        The verifier: from 0.0 to 1.0, `UNREAD` where the response neither has points nor denies them. A `Score` with an error where
        the answer holds no such boxes or points.

    Raises:
        ValueError: The radius is not from 0 to 1000.
    """
    if radius is not None and not 0 <= radius <= 1000:
        raise ValueError(f"radius of point_in_box must be from 0 to 1000 thousandths, got {radius}")
    size, remedy = (BOX, "; for points, set radius") if radius is None else (POINT, "; for boxes, set no radius")

    def worth(found_N2: np.ndarray, wanted_M: np.ndarray) -> np.ndarray:
        point_N12 = found_N2[:, None]
        if radius is not None:
            return ((point_N12 - wanted_M) ** 2).sum(-1) <= radius**2
        is_inside_NM2 = (point_N12 >= wanted_M[:, :2]) & (point_N12 <= wanted_M[:, 2:])
        return is_inside_NM2.min(-1)

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        try:
            wanted = _reference(prompt, size)
        except ValueError as error:
            return unreadable("point_in_box", prompt, f"{error}{remedy}")
        text = answer_part(completion)
        found = shapes_of_text(text, POINT)
        if not found and not says_none(text):
            return UNREAD
        if not wanted:
            return float(all(shape.place is None for shape in found) and says_none(text))
        return share_found(found, wanted, worth)

    return verify


@lru_cache(maxsize=1)  # a group of completions has one prompt
def _reference(prompt: Prompt, size: int) -> list[Shape]:
    return shapes_of_reference(prompt.answer, size)
