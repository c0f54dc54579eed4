"""Samples in, microbatches of at most `learner.microbatch_tokens` out.

Shapes: L tokens of a sequence, B sequences, T = L − 1 predicted positions, K layers, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from policies.inputs import (
    EncodedMedia,
    VisionInputs,
    VisionTokens,
    encode_images,
    encode_video,
    join_media,
    mrope_positions,
    num_placeholders,
)
from policies.packing import Row, packed_row, padded_row
from rl.samples import Sample
from rollout.data.mixture import minibatch_sizes
from rollout.types import unknown_expert

if TYPE_CHECKING:
    from transformers import ProcessorMixin


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Microbatch:
    """Sequences of one forward and backward pass, padded on the right; T = L − 1."""

    tokens_BL: Tensor
    """int64 token ids."""
    positions_3BL: Tensor
    """int64 positions of interleaved MRoPE (time, height, width)."""
    mask_BT: Tensor
    """bool, True where the policy sampled the *next* token."""
    rollout_logprobs_BT: Tensor
    """float32, the engine's log-probabilities of the next tokens."""
    stale_BT: Tensor
    """bool, True where the next token is off-policy: sampled by an older policy than the learner's."""
    advantages_B: Tensor
    """float32."""
    lengths_B: Tensor
    """int64, tokens of each sequence."""
    vision: VisionInputs | None
    """Images and videos of the row, each distinct one once; None for text only."""
    row: Row
    """The order in which the tokens pass through the layers."""
    prompt_ids: Sequence[str]
    """[B] prompts of the sequences, for error messages."""
    experts_BLKk: Tensor | None = None
    """The engine's experts in each of K layers, `unknown_expert` where unknown; None if the engine returned none."""
    num_lost: int = 0
    """Sequences with experts that are lost, and so unknown."""
    teacher_logprobs_BT: Tensor | None = None
    """float32, the teacher's log-probabilities of the next tokens; None without a teacher."""
    is_padding: bool = False
    """True for a microbatch without loss, which a rank runs while others still have sequences."""

    def to(self, device: torch.device) -> Microbatch:
        """The same microbatch with all tensors on `device`."""
        moved = {
            field.name: value.to(device) for field in fields(self) if hasattr(value := getattr(self, field.name), "to")
        }
        return replace(self, **moved)


def split_minibatches(groups: Sequence[Sequence[Sample]], num_minibatches: int) -> list[list[Sample]]:
    """Splits the step's groups into equal shares, in order. Siblings stay together; empty minibatches are dropped.

    A mixture orders its tasks for these shares. A group without variance keeps its place: its advantages are 0, and it counts in
    the mean. A group without scores has no samples and keeps its place, too. So a minibatch's task ratio is a ratio of groups.
    """
    left = iter(groups)
    shares = [
        [sample for group in islice(left, size) for sample in group]
        for size in minibatch_sizes(len(groups), num_minibatches)
    ]
    return [share for share in shares if share]


def plan_microbatches(
    lengths: Sequence[int], budget: int, *, packed: bool = False, shared: Sequence[int] | None = None
) -> list[list[int]]:
    """Assigns sequences to microbatches of at most `budget` tokens.

    Args:
        lengths: Tokens of each sequence.
        budget: Tokens of one microbatch, padding included.
        packed: True without padding: sequences stay in order, siblings mostly together. Else the longest come first.
        shared: Tokens at the beginning of each sequence that do not count after its predecessor. Default: none.

    Returns:
        Lists of indices into `lengths`; every index once.

    Raises:
        ValueError: One sequence is longer than the budget.
    """
    if max(lengths, default=0) > budget:
        raise ValueError(
            f"a sequence of {max(lengths)} tokens does not fit a microbatch of {budget}: raise learner.microbatch_tokens"
        )
    plan: list[list[int]] = []
    used: list[int] = []
    shared = shared or [0] * len(lengths)
    # A stable sort keeps siblings, which share their images and often their length, side by side.
    for index in sorted(range(len(lengths)), key=lambda i: 0 if packed else -lengths[i]):
        # Packed, a sequence goes to its predecessor's microbatch, or to the first with room; padded, to the one nearest in length.
        candidates = list(range(len(plan)) if packed else range(len(plan))[-1:])
        costs = {i: lengths[index] if packed else lengths[plan[i][0]] for i in candidates}
        if shared[index]:
            before = next(i for i in candidates if plan[i][-1] == index - 1)
            candidates, costs[before] = [before, *candidates], lengths[index] - shared[index]
        chosen = next((i for i in candidates if used[i] + costs[i] <= budget), None)
        if chosen is None:
            plan.append([index])
            used.append(lengths[index])
        else:
            plan[chosen].append(index)
            used[chosen] += costs[chosen]
    return plan


def split_ranks(samples: Sequence[Sample], num_ranks: int, shared: Sequence[int] | None = None) -> list[list[Sample]]:
    """Splits samples into one share per rank, of about equal tokens; in order, so that siblings share a rank and its images.

    Args:
        samples: The samples of all ranks.
        num_ranks: Shares.
        shared: As in `plan_microbatches`: a cut repeats them. Default: none.
    """
    repeated = np.array([*(shared or [0] * len(samples)), 0])
    ends = np.cumsum([0, *(len(sample.token_ids) for sample in samples)]) - np.cumsum([0, *repeated[:-1]])
    bounds = [int((np.abs(ends - ends[-1] * rank / num_ranks) + repeated).argmin()) for rank in range(num_ranks + 1)]
    return [list(samples[a:b]) for a, b in pairwise(bounds)]


def lengthen_plan(plan: Sequence[list[int]], count: int) -> list[list[int]]:
    """Halves the largest microbatch until there are `count`, or one per sequence."""
    longer = list(plan)
    while len(longer) < count and any(len(indices) > 1 for indices in longer):
        widest = max(range(len(longer)), key=lambda i: len(longer[i]))
        half = len(longer[widest]) // 2
        longer[widest : widest + 1] = [longer[widest][:half], longer[widest][half:]]
    return longer


def padding_microbatch(*, packed: bool) -> Microbatch:
    """Two tokens without loss, for a rank whose sequences are all done."""
    return Microbatch(
        tokens_BL=torch.zeros(1, 2, dtype=torch.long),
        positions_3BL=torch.arange(2).expand(3, 1, 2),
        mask_BT=torch.zeros(1, 1, dtype=torch.bool),
        rollout_logprobs_BT=torch.zeros(1, 1),
        stale_BT=torch.zeros(1, 1, dtype=torch.bool),
        advantages_B=torch.zeros(1),
        lengths_B=torch.tensor([2]),
        vision=None,
        row=packed_row([2]) if packed else padded_row(1, 2),
        prompt_ids=[""],
        is_padding=True,
    )


def encode_media(processor: ProcessorMixin, samples: Sequence[Sample]) -> dict[int, EncodedMedia]:
    """Encodes the images and videos of samples, each distinct object once; keys are their `id`s."""
    images = {id(image): image for sample in samples for image in sample.images}
    videos = {id(video): video for sample in samples for video in sample.videos}
    return dict(zip(images, encode_images(processor, list(images.values())), strict=True)) | {
        key: encode_video(processor, video.frames) for key, video in videos.items()
    }


def make_microbatch(
    samples: Sequence[Sample],
    encoded: Mapping[int, EncodedMedia],
    vision: VisionTokens,
    *,
    packed: bool = False,
    shared: Sequence[int] | None = None,
) -> Microbatch:
    """Pads samples to one rectangle, and lays out the row in which they pass through the layers.

    Args:
        samples: [B] the sequences.
        encoded: Their images and videos, from `encode_media`.
        vision: The placeholder tokens of images and videos.
        packed: True for a row without padding.
        shared: [B] tokens at the beginning that a packed row has already, as in `packed_row`.
    """
    length = max(len(sample.token_ids) for sample in samples)
    shape = (len(samples), length)
    tokens_BL, positions_3BL = np.zeros(shape, np.int64), np.zeros((3, *shape), np.int64)
    mask_BL, logprobs_BL, stale_BL = np.zeros(shape, bool), np.zeros(shape, np.float32), np.zeros(shape, bool)
    media_B = [[encoded[id(item)] for item in (*sample.images, *sample.videos)] for sample in samples]
    shared, head = shared or [0] * len(samples), 0
    for row, (sample, media) in enumerate(zip(samples, media_B, strict=True)):
        num_tokens = len(sample.token_ids)
        tokens_BL[row, :num_tokens] = sample.token_ids
        head = head if shared[row] and len(media) == len(media_B[head]) else row
        begun_3P = positions_3BL[:, head, : shared[row] if head < row else 0]
        positions_3BL[:, row, :num_tokens] = _positions(sample.token_ids, media, vision, begun_3P)
        mask_BL[row, :num_tokens] = sample.loss_mask
        logprobs_BL[row, :num_tokens] = sample.rollout_logprobs
        if sample.stale_mask is not None:
            stale_BL[row, :num_tokens] = sample.stale_mask
    experts_BLKk, num_lost = _join_experts(samples, length)
    lengths = [len(sample.token_ids) for sample in samples]
    return Microbatch(
        tokens_BL=torch.from_numpy(tokens_BL),
        positions_3BL=torch.from_numpy(positions_3BL),
        mask_BT=torch.from_numpy(mask_BL[:, 1:].copy()),
        rollout_logprobs_BT=torch.from_numpy(logprobs_BL[:, 1:].copy()),
        stale_BT=torch.from_numpy(stale_BL[:, 1:].copy()),
        advantages_B=torch.tensor([sample.advantage for sample in samples], dtype=torch.float32),
        lengths_B=torch.tensor(lengths),
        vision=join_media([_own(*each, vision) for each in zip(samples, media_B, shared, strict=True)]),
        row=packed_row(lengths, shared) if packed else padded_row(*shape),
        experts_BLKk=experts_BLKk,
        num_lost=num_lost,
        teacher_logprobs_BT=_join_teacher(samples, length),
        prompt_ids=[sample.prompt_id for sample in samples],
    )


def _positions(
    token_ids: np.ndarray, media: Sequence[EncodedMedia], vision: VisionTokens, begun_3P: np.ndarray
) -> np.ndarray:
    """Returns the positions [3, L] of a sequence, given those of its first tokens; text continues them."""
    rest = token_ids[begun_3P.shape[1] :]
    if not begun_3P.size or ((rest == vision.image_id) | (rest == vision.video_id)).any():
        return mrope_positions(token_ids, media, vision)
    start = int(begun_3P.max()) + 1
    text_3R = np.broadcast_to(np.arange(start, start + len(rest)), (3, len(rest)))
    return np.concatenate([begun_3P, text_3R], axis=1)


def _own(sample: Sample, media: Sequence[EncodedMedia], shared: int, vision: VisionTokens) -> list[EncodedMedia]:
    """Returns the media of a sequence whose placeholders come after what it shares."""
    own = []
    for is_video, token_id in ((False, vision.image_id), (True, vision.video_id)):
        left = int((sample.token_ids[:shared] == token_id).sum())
        for item in media:
            if item.is_video == is_video:
                if left <= 0:
                    own.append(item)
                left -= num_placeholders(item, vision)
    return own


def _join_teacher(samples: Sequence[Sample], length: int) -> Tensor | None:
    """[B, T] the teacher's log-probabilities of the next tokens, padded; None without a teacher.

    Raises:
        ValueError: Some samples have them and others not: their advantages would not be comparable.
    """
    known = [sample.teacher_logprobs for sample in samples if sample.teacher_logprobs is not None]
    if not known:
        return None
    if len(known) < len(samples):
        lacking = next(sample.prompt_id for sample in samples if sample.teacher_logprobs is None)
        raise ValueError(
            f"prompt {lacking}: the teacher's log-probabilities are missing, others of the batch have them"
        )
    logprobs_BL = np.zeros((len(samples), length), np.float32)
    for row, logprobs in enumerate(known):
        logprobs_BL[row, : len(logprobs)] = logprobs
    return torch.from_numpy(logprobs_BL[:, 1:].copy())


def _join_experts(samples: Sequence[Sample], length: int) -> tuple[Tensor | None, int]:
    """[B, L, K, k] the samples' experts, padded, fetched from where they are; and how many samples have lost some of theirs."""
    spans = [(row, start, experts) for row, sample in enumerate(samples) for start, experts in sample.routed_experts]
    if not spans:
        return None, 0
    _, _, first = spans[0]
    shape = (len(samples), length, *first.shape[1:])
    experts_BLKk = np.full(shape, unknown_expert(first.dtype.itemsize), first.dtype)
    rows_lost = set()
    for row, start, experts in spans:
        found = experts if isinstance(experts, np.ndarray) else experts.fetch()
        if found is None:
            rows_lost.add(row)
        else:
            experts_BLKk[row, start : start + len(found)] = found
    return torch.from_numpy(experts_BLKk), len(rows_lost)
