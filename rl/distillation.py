"""On-policy distillation: the student samples, and a teacher's word on each of its tokens is that token's advantage.

Of one position, with the student π and the teacher q,

    ∇ KL(π ‖ q) = Σ_x π(x) ∇log π(x) · (log π(x) − log q(x)) = − E_{x ~ π} [∇log π(x) · A(x)],   A(x) = log q(x) − log π(x),

for Σ π ∇log π = 0. So a policy gradient with these advantages descends the reverse KL, position by position, on the student's own
responses: it needs no baseline, and no noise is left where the student has become the teacher (on-policy distillation as in
arXiv 2306.13649 and arXiv 2306.08543; the sampled-token form is Thinking Machines', 2025). What a token does to later positions is
not counted.

Shapes: B sequences, T predicted positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rl.config import TeacherConfig
from rl.learner.microbatches import TeacherLogprobs
from rollout.types import Group, sampled_mask


def token_advantages(
    advantages_B: Tensor, logprobs_BT: Tensor, teacher_BT: Tensor, mask_BT: Tensor, config: TeacherConfig
) -> Tensor:
    """Each token's advantage: reward_weight · A + coefficient · (log q − log π).

    Args:
        advantages_B: A, from the rewards.
        logprobs_BT: log π under the *present* weights, not those that sampled. For a token that another policy μ has sampled, the
            objective's ratio π/μ makes of this the gradient of KL(π ‖ q), whatever μ was; log q − log μ would descend
            KL(π ‖ q) − KL(π ‖ μ), and push a student that has reached its teacher on, away from where it was before.
        teacher_BT: log q.
        mask_BT: True at response tokens.
        config: The two weights.

    Returns:
        [B, T] without gradient, 0 outside the mask; float32.
    """
    told_BT = config.coefficient * (teacher_BT - logprobs_BT.detach())
    return (config.reward_weight * advantages_B[:, None] + told_BT).masked_fill(~mask_BT, 0)


def teacher_metrics(groups: Sequence[Group], teacher_logprobs: TeacherLogprobs) -> dict[str, float]:
    """How far the student was from its teacher when it sampled.

    Returns:
        `policy/teacher_kl`, the mean of log μ − log q over all sampled tokens, in nats per token: an estimate without bias of
        KL(μ ‖ q) on the student's own responses. `policy/teacher_kl/<task>` likewise, where there are several tasks.
    """
    of_task = defaultdict(list)
    for group, its_told in zip(groups, teacher_logprobs, strict=True):
        for completion, told in zip(group.completions, its_told, strict=True):
            of_task[group.prompt.task].append((completion.logprobs - told)[sampled_mask(completion)])
    differences = {task: np.concatenate(its) for task, its in of_task.items()}
    parts = {f"/{task}": its for task, its in sorted(differences.items())} if len(differences) > 1 else {}
    return {
        f"policy/teacher_kl{name}": float(its.mean(dtype=np.float64))
        for name, its in {"": np.concatenate(list(differences.values())), **parts}.items()
        if len(its)
    }
