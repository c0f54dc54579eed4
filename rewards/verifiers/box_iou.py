"""Rewards bounding boxes by their intersection over union with the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewards.text.answer_text import answer_part
from rewards.text.boxes import BOX, shapes_of_reference, shapes_of_text, share_found
from rewards.text.places import says_none
from rewards.text.unreadable import unreadable
from rewards.types import UNREAD, Score, Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt

if TYPE_CHECKING:
    import numpy as np


@with_options
def box_iou(*, threshold: float | None = None) -> Verifier:
    """Makes a verifier that rewards boxes by their IoU with the reference, in Qwen3-VL's coordinates, 0 to 1000.

    Boxes of response and reference are paired for the greatest sum of IoUs. The reward is this sum over the larger number of
    boxes, so a box too many costs as much as a missing one. Where the reference has different labels, a box needs the one it is
    for; `a cat`, `black cat` and `cat on the left` stand for `cat`. Where it has one label, a box without a label may pair, too.
    `boxes.shapes_of_text` finds the boxes of a response.

    `prompt.answer` is a box `[left, top, right, bottom]`, a list of boxes, a list of `{"bbox_2d": [...], "label": ...}`, or one of
    these as JSON; never in pixels or from 0 to 1. An empty list means that there is no such object: then an empty list, or words
    that say so, earn 1.

    Args:
        threshold: A pair counts 1 from this IoU on, and else 0; by default it counts its IoU.

    Returns:
        The verifier: from 0.0 to 1.0, `UNREAD` where the response neither has boxes nor denies them. A `Score` with an error where
        the answer holds no such boxes.

    Raises:
        ValueError: The threshold is not above 0 and at most 1.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold of box_iou must be > 0 and <= 1, got {threshold}")

    def worth(found_N4: np.ndarray, wanted_M4: np.ndarray) -> np.ndarray:
        iou_NM = _iou(found_N4, wanted_M4)
        return iou_NM if threshold is None else iou_NM >= threshold

    def verify(prompt: Prompt, completion: Completion) -> float | Score:
        try:
            wanted = shapes_of_reference(prompt.answer, BOX)
        except ValueError as error:
            return unreadable("box_iou", prompt, str(error))
        text = answer_part(completion)
        found = shapes_of_text(text, BOX)
        if not found and not says_none(text):
            return UNREAD
        if not wanted:
            return float(all(shape.place is None for shape in found) and says_none(text))
        return share_found(found, wanted, worth)

    return verify


def _iou(found_N4: np.ndarray, wanted_M4: np.ndarray) -> np.ndarray:
    """Returns [N, M] the intersection over union of each pair."""
    import numpy as np

    start_NM2 = np.maximum(found_N4[:, None, :2], wanted_M4[:, :2])
    end_NM2 = np.minimum(found_N4[:, None, 2:], wanted_M4[:, 2:])
    shared_NM = np.clip(end_NM2 - start_NM2, 0, None).prod(-1)
    area_N1, area_M = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (found_N4[:, None], wanted_M4))
    return shared_NM / (area_N1 + area_M - shared_NM)
