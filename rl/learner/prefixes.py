"""Common beginnings of sequences: the prompt of a group's samples, the first turns of its episodes.

What passes through the layers once must be equal in all: tokens, pictures, and the experts that are replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.inputs import VisionTokens
from rl.samples import Sample


def common_beginnings(samples: Sequence[Sample], vision: VisionTokens) -> list[int]:
    """Returns the tokens that each sample has in common with the first of its family; 0 for the first.

    A family is a run of samples of one prompt, which share at least half of what its first two do. All of them share as much as
    those that share least, and each has a token of its own.

    Args:
        samples: The samples, those of a group side by side.
        vision: The placeholders.
    """
    shared = [0] * len(samples)
    first = common = 0
    for index in range(1, len(samples)):
        head, sample = samples[first], samples[index]
        most = _common(head, sample, vision) if sample.prompt_id == head.prompt_id else 0
        if most and 2 * most >= common:
            common = min(most, common or most)
        else:
            shared[first + 1 : index] = [common] * (index - first - 1)
            first, common = index, 0
    shared[first + 1 :] = [common] * (len(samples) - first - 1)
    return shared


def _common(one: Sample, other: Sample, vision: VisionTokens) -> int:
    """Returns the tokens at the beginning of two samples after which all that follows may differ."""
    limit = min(len(one.token_ids), len(other.token_ids)) - 1
    different = np.flatnonzero(one.token_ids[:limit] != other.token_ids[:limit])
    limit = int(different[0]) if len(different) else limit
    tokens, starts = one.token_ids[:limit], list[int]()
    num_same = _num_same(one.images, other.images)
    if num_same < max(len(one.images), len(other.images)):
        is_image = tokens == vision.image_id
        image_starts = np.flatnonzero(is_image & np.diff(is_image, prepend=False))
        starts += [int(start) for start in image_starts[num_same : num_same + 1]]
    if _num_same(one.videos, other.videos) < max(len(one.videos), len(other.videos)):
        starts += [int(place) for place in np.flatnonzero(tokens == vision.video_id)[:1]]
    same = _num_same([experts for _, experts in one.routed_experts], [experts for _, experts in other.routed_experts])
    starts += [start for sample in (one, other) for start, _ in sample.routed_experts[same:]]
    return min([limit, *starts])


def _num_same(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """Returns the items at the beginning of two lists that are the same objects."""
    pairs = list(zip(ours, theirs, strict=False))
    return next((number for number, (a, b) in enumerate(pairs) if a is not b), len(pairs))
