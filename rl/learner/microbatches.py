"""Groups and scores → samples → minibatches → microbatches.

Shapes: L tokens of a sequence, B sequences, T = L − 1 predicted positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from policies.inputs import EncodedMedia, VisionTokens, encode_image, encode_video, join_media, mrope_positions
from policies.routing import UNKNOWN
from rewards.types import Score
from rl.advantages import step_advantages
from rl.config import AdvantageKind
from rl.types import Microbatch, Sample
from rollout.data.mixture import minibatch_sizes
from rollout.types import Completion, Group, observed_images, sampled_mask, token_versions

if TYPE_CHECKING:
    from transformers import ProcessorMixin

TeacherLogprobs: TypeAlias = Sequence[Sequence[np.ndarray]]
"""[groups][completions] of [T] float32, a teacher's log-probability of each of a completion's tokens."""


def make_samples(
    groups: Sequence[Group],
    scores: Sequence[Sequence[Score]],
    advantage: AdvantageKind = "group_std",
    policy_version: int | None = None,
    teacher_logprobs: TeacherLogprobs | None = None,
) -> list[list[Sample]]:
    """One list of samples per group, each sample with its advantage; completions whose verifier failed are left out.

    Args:
        groups: The step's groups.
        scores: [groups][completions].
        advantage: How rewards become advantages.
        policy_version: The learner's: tokens of older ones are stale. None: no token is.
        teacher_logprobs: [groups][completions] of [T], a teacher's log-probabilities of the completions' tokens; None without one.
    """
    advantages = step_advantages(scores, [group.prompt.task for group in groups], advantage)
    nothing = [[None] * len(group.completions) for group in groups]
    return [
        [
            _make_sample(group, completion, float(advantage), policy_version, its_teacher)
            for completion, score, advantage, its_teacher in zip(
                group.completions, group_scores, its_advantages, its_told, strict=True
            )
            if score.error is None
        ]
        for group, group_scores, its_advantages, its_told in zip(
            groups, scores, advantages, teacher_logprobs or nothing, strict=True
        )
    ]


def _make_sample(
    group: Group,
    completion: Completion,
    advantage: float,
    policy_version: int | None,
    teacher_logprobs: np.ndarray | None,
) -> Sample:
    num_prompt = len(group.prompt_token_ids)
    token_ids = np.concatenate([group.prompt_token_ids, completion.token_ids]).astype(np.int32)
    # What an environment has put between the turns is read, and not learnt.
    loss_mask = np.concatenate([np.zeros(num_prompt, bool), sampled_mask(completion)])
    return Sample(
        prompt_id=group.prompt.id,
        token_ids=token_ids,
        loss_mask=loss_mask,
        rollout_logprobs=np.concatenate([np.zeros(num_prompt, np.float32), completion.logprobs]).astype(np.float32),
        advantage=advantage,
        images=[*group.prompt.images, *observed_images(completion)],
        videos=group.prompt.videos,
        stale_mask=None if policy_version is None else _stale_mask(completion, num_prompt, policy_version),
        routed_experts=_routed_experts(group, completion),
        teacher_logprobs=None
        if teacher_logprobs is None
        else np.where(loss_mask, np.concatenate([np.zeros(num_prompt, np.float32), teacher_logprobs]), 0),
    )


def _stale_mask(completion: Completion, num_prompt: int, policy_version: int) -> np.ndarray | None:
    stale_T = (token_versions(completion) < policy_version) & sampled_mask(completion)
    return np.concatenate([np.zeros(num_prompt, bool), stale_T]) if stale_T.any() else None


def _routed_experts(group: Group, completion: Completion) -> np.ndarray | None:
    """[L, layers, top_k] the engine's experts of prompt and response, as far as they are known."""
    prompt, response = group.prompt_routed_experts, completion.routed_experts
    if response is None:
        return None
    if prompt is None:
        prompt = np.full((len(group.prompt_token_ids), *response.shape[1:]), UNKNOWN)
    return np.concatenate([prompt, response]).astype(np.int16)


def split_minibatches(groups: Sequence[Sequence[Sample]], num_minibatches: int) -> list[list[Sample]]:
    """Equal shares of the step's groups, in order; siblings stay together. Minibatches left empty are dropped.

    A mixture lays its tasks out for these shares. A group without variance keeps its place: its advantages are 0, and it counts in
    the mean; so does one without a verdict, which has no samples. The ratio of a minibatch is thus one of groups.
    """
    left = iter(groups)
    shares = [
        [sample for group in islice(left, size) for sample in group]
        for size in minibatch_sizes(len(groups), num_minibatches)
    ]
    return [share for share in shares if share]


def plan_microbatches(lengths: Sequence[int], budget: int, *, packed: bool = False) -> list[list[int]]:
    """Which sequences go together, at most `budget` tokens in each microbatch.

    Args:
        lengths: Tokens of each sequence.
        budget: Tokens of one microbatch, padding included.
        packed: There will be no padding: sequences go in order, siblings mostly beside each other. Else the longest come first.

    Returns:
        Lists of indices into `lengths`; every index once.

    Raises:
        ValueError: If one sequence alone is longer than the budget.
    """
    if max(lengths, default=0) > budget:
        raise ValueError(
            f"a sequence of {max(lengths)} tokens does not fit a microbatch of {budget}: raise learner.microbatch_tokens"
        )
    plan: list[list[int]] = []
    used: list[int] = []
    # A stable sort keeps siblings, which share their images and often their length, side by side.
    for index in sorted(range(len(lengths)), key=lambda i: 0 if packed else -lengths[i]):
        # Packed, a sequence goes wherever it fits; padded, beside those that are nearest to it in length.
        open_to_it = range(len(plan)) if packed else range(len(plan))[-1:]
        takes = [lengths[index] if packed else lengths[indices[0]] for indices in plan]
        home = next((i for i in open_to_it if used[i] + takes[i] <= budget), None)
        if home is None:
            plan.append([index])
            used.append(lengths[index])
        else:
            plan[home].append(index)
            used[home] += takes[home]
    return plan


def split_ranks(samples: Sequence[Sample], num_ranks: int) -> list[list[Sample]]:
    """One share per rank, of about equally many tokens; in order, so that siblings and their images stay together."""
    ends = np.cumsum([0, *(len(sample.token_ids) for sample in samples)])
    bounds = [int(np.abs(ends - ends[-1] * rank / num_ranks).argmin()) for rank in range(num_ranks + 1)]
    return [list(samples[a:b]) for a, b in pairwise(bounds)]


def lengthen_plan(plan: Sequence[list[int]], count: int) -> list[list[int]]:
    """Halves the microbatch of most sequences until there are `count`, or one for each sequence."""
    longer = list(plan)
    while len(longer) < count and any(len(indices) > 1 for indices in longer):
        widest = max(range(len(longer)), key=lambda i: len(longer[i]))
        half = len(longer[widest]) // 2
        longer[widest : widest + 1] = [longer[widest][:half], longer[widest][half:]]
    return longer


def idle_microbatch() -> Microbatch:
    """Two tokens without anything to learn, for a rank that has nothing left to do."""
    return Microbatch(
        tokens_BL=torch.zeros(1, 2, dtype=torch.long),
        positions_3BL=torch.arange(2).expand(3, 1, 2),
        mask_BT=torch.zeros(1, 1, dtype=torch.bool),
        rollout_logprobs_BT=torch.zeros(1, 1),
        stale_BT=torch.zeros(1, 1, dtype=torch.bool),
        advantages_B=torch.zeros(1),
        lengths_B=torch.tensor([2]),
        vision=None,
        prompt_ids=[""],
        idle=True,
    )


def encode_media(processor: ProcessorMixin, samples: Sequence[Sample]) -> dict[int, EncodedMedia]:
    """The images and videos of samples, each distinct object once, by its `id`."""
    images = {id(image): image for sample in samples for image in sample.images}
    videos = {id(video): video for sample in samples for video in sample.videos}
    return {key: encode_image(processor, image) for key, image in images.items()} | {
        key: encode_video(processor, video.frames) for key, video in videos.items()
    }


def make_microbatch(samples: Sequence[Sample], encoded: Mapping[int, EncodedMedia], vision: VisionTokens) -> Microbatch:
    """Pads samples to one rectangle.

    Args:
        samples: [B] the sequences.
        encoded: Their images and videos, as `encode_media` makes them.
        vision: The placeholders of images and videos.
    """
    length = max(len(sample.token_ids) for sample in samples)
    shape = (len(samples), length)
    tokens_BL, positions_3BL = np.zeros(shape, np.int64), np.zeros((3, *shape), np.int64)
    mask_BL, logprobs_BL, stale_BL = np.zeros(shape, bool), np.zeros(shape, np.float32), np.zeros(shape, bool)
    shown_B = [[encoded[id(item)] for item in (*sample.images, *sample.videos)] for sample in samples]
    for row, (sample, shown) in enumerate(zip(samples, shown_B, strict=True)):
        num_tokens = len(sample.token_ids)
        tokens_BL[row, :num_tokens] = sample.token_ids
        positions_3BL[:, row, :num_tokens] = mrope_positions(sample.token_ids, shown, vision)
        mask_BL[row, :num_tokens] = sample.loss_mask
        logprobs_BL[row, :num_tokens] = sample.rollout_logprobs
        if sample.stale_mask is not None:
            stale_BL[row, :num_tokens] = sample.stale_mask
    return Microbatch(
        tokens_BL=torch.from_numpy(tokens_BL),
        positions_3BL=torch.from_numpy(positions_3BL),
        mask_BT=torch.from_numpy(mask_BL[:, 1:].copy()),
        rollout_logprobs_BT=torch.from_numpy(logprobs_BL[:, 1:].copy()),
        stale_BT=torch.from_numpy(stale_BL[:, 1:].copy()),
        advantages_B=torch.tensor([sample.advantage for sample in samples], dtype=torch.float32),
        lengths_B=torch.tensor([len(sample.token_ids) for sample in samples]),
        vision=join_media(shown_B),
        experts_BLKk=_join_experts(samples, length),
        teacher_logprobs_BT=_join_teacher(samples, length),
        prompt_ids=[sample.prompt_id for sample in samples],
    )


def _join_teacher(samples: Sequence[Sample], length: int) -> torch.Tensor | None:
    """[B, T] what the teacher says of the next tokens, padded; None if it says nothing.

    Raises:
        ValueError: If it speaks of some samples and not of others: their advantages would not mean the same.
    """
    told = [sample.teacher_logprobs for sample in samples if sample.teacher_logprobs is not None]
    if not told:
        return None
    if len(told) < len(samples):
        silent = next(sample.prompt_id for sample in samples if sample.teacher_logprobs is None)
        raise ValueError(f"prompt {silent}: the teacher's log-probabilities are missing, others of the batch have them")
    logprobs_BL = np.zeros((len(samples), length), np.float32)
    for row, logprobs in enumerate(told):
        logprobs_BL[row, : len(logprobs)] = logprobs
    return torch.from_numpy(logprobs_BL[:, 1:].copy())


def _join_experts(samples: Sequence[Sample], length: int) -> torch.Tensor | None:
    """[B, L, K, k] the samples' experts, padded."""
    known = {row: sample.routed_experts for row, sample in enumerate(samples) if sample.routed_experts is not None}
    if not known:
        return None
    layers_and_width = next(iter(known.values())).shape[1:]
    experts_BLKk = np.full((len(samples), length, *layers_and_width), UNKNOWN, np.int16)
    for row, experts in known.items():
        experts_BLKk[row, : len(experts)] = experts
    return torch.from_numpy(experts_BLKk)
