"""Groups and scores in, samples with advantages out: the learner's input.

Shapes: L tokens of a sequence (prompt and response), T tokens of a completion. Lists: groups of a step, completions of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rewards.types import Score
from rl.advantages import step_advantages
from rl.config import AdvantageKind
from rollout.types import Completion, Experts, Group, observed_images, sampled_mask, token_versions

TeacherLogprobs: TypeAlias = Sequence[Sequence[np.ndarray]]
"""[groups][completions] of [T] float32: a teacher's log-probability of each token of a completion."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One completion as the learner trains on it."""

    prompt_id: str
    """The prompt's id."""
    token_ids: np.ndarray
    """[L] int32, prompt and response: exactly the engine's tokens."""
    loss_mask: np.ndarray
    """[L] bool, True at tokens that the policy sampled."""
    rollout_logprobs: np.ndarray
    """[L] float32, the engine's log-probability of each sampled token; 0 elsewhere."""
    advantage: float
    """The advantage of the whole response."""
    images: Sequence[Any]
    """PIL images in the order of their placeholders. Siblings share the objects, and pickle keeps them shared."""
    stale_mask: np.ndarray | None = None
    """[L] bool, True at off-policy tokens, sampled by an older policy than the learner's; None if there are none."""
    routed_experts: Sequence[tuple[int, Experts]] = ()
    """The experts that the engine chose, as far as they are known: spans of tokens, each with the place of its first token."""
    videos: Sequence[Any] = ()
    """`rollout.types.Video` objects in the order of their placeholders."""
    teacher_logprobs: np.ndarray | None = None
    """[L] float32, the teacher's log-probability of each sampled token, 0 elsewhere; None without a teacher."""


def make_samples(
    groups: Sequence[Group],
    scores: Sequence[Sequence[Score]],
    advantage: AdvantageKind = "group_std",
    policy_version: int | None = None,
    teacher_logprobs: TeacherLogprobs | None = None,
) -> list[list[Sample]]:
    """Makes the samples of each group; completions whose verifier failed are left out.

    Args:
        groups: The step's groups.
        scores: [groups][completions].
        advantage: The advantage estimator.
        policy_version: The learner's version: tokens of older ones are off-policy. None: all tokens are on-policy.
        teacher_logprobs: [groups][completions] of [T]; None without a teacher.
    """
    advantages = step_advantages(scores, [group.prompt.task for group in groups], advantage)
    samples = []
    for index, (group, group_scores) in enumerate(zip(groups, scores, strict=True)):
        rows = []
        for k, (completion, score) in enumerate(zip(group.completions, group_scores, strict=True)):
            if score.error is None:
                teacher_T = None if teacher_logprobs is None else teacher_logprobs[index][k]
                advantage_of_k = float(advantages[index][k])
                rows.append(_make_sample(group, completion, advantage_of_k, policy_version, teacher_T))
        samples.append(rows)
    return samples


def _make_sample(
    group: Group,
    completion: Completion,
    advantage: float,
    policy_version: int | None,
    teacher_logprobs_T: np.ndarray | None,
) -> Sample:
    num_prompt = len(group.prompt_token_ids)

    def after_prompt(values_T: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros(num_prompt, values_T.dtype), values_T])

    # Environment observations between the turns are input only.
    loss_mask = after_prompt(sampled_mask(completion))
    return Sample(
        prompt_id=group.prompt.id,
        token_ids=np.concatenate([group.prompt_token_ids, completion.token_ids]).astype(np.int32),
        loss_mask=loss_mask,
        rollout_logprobs=after_prompt(completion.logprobs.astype(np.float32)),
        advantage=advantage,
        images=[*group.prompt.images, *observed_images(completion)],
        videos=group.prompt.videos,
        stale_mask=None if policy_version is None else _stale_mask(completion, num_prompt, policy_version),
        routed_experts=_routed_experts(group, completion),
        teacher_logprobs=None
        if teacher_logprobs_T is None
        else np.where(loss_mask, after_prompt(teacher_logprobs_T.astype(np.float32)), 0),
    )


def _stale_mask(completion: Completion, num_prompt: int, policy_version: int) -> np.ndarray | None:
    stale_T = (token_versions(completion) < policy_version) & sampled_mask(completion)
    return np.concatenate([np.zeros(num_prompt, bool), stale_T]) if stale_T.any() else None


def _routed_experts(group: Group, completion: Completion) -> list[tuple[int, Experts]]:
    """Returns the engine's experts of prompt and response, as in `Sample`.

    A group has the prompt's experts once, as the first completion's weights chose them. Other weights have chosen others, which
    are unknown.
    """
    prompt, response = group.prompt_routed_experts, completion.routed_experts
    if response is None:
        return []
    first = next(sibling for sibling in group.completions if sibling.routed_experts is not None)
    spans = [(len(group.prompt_token_ids), response)]
    if prompt is not None and _newest_version(completion) == _newest_version(first):
        spans.insert(0, (0, prompt))
    return spans


def _newest_version(completion: Completion) -> int:
    return int(token_versions(completion).max(initial=completion.policy_version))
