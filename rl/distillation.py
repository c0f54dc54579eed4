"""On-policy distillation: the student samples, and the teacher's log-probability of each token gives that token's advantage.

At one position, with the student π and the teacher q,

    ∇ KL(π ‖ q) = Σ_x π(x) ∇log π(x) · (log π(x) − log q(x)) = − E_{x ~ π} [∇log π(x) · A(x)],   A(x) = log q(x) − log π(x),

because Σ π ∇log π = 0. So a policy gradient with these advantages descends the reverse KL at every position of the student's own
responses. It needs no baseline, and its noise vanishes when the student equals the teacher. The effect of a token on later
positions is not counted. On-policy distillation: arXiv 2306.13649 and 2306.08543; the sampled-token form: Thinking Machines, 2025.

Shapes: B sequences, T predicted positions.
"""

from __future__ import annotations

from torch import Tensor

from rl.config import TeacherConfig


def token_advantages(
    advantages_B: Tensor, logprobs_BT: Tensor, teacher_BT: Tensor, mask_BT: Tensor, config: TeacherConfig
) -> Tensor:
    """Each token's advantage: reward_weight · A + coefficient · (log q − log π).

    Args:
        advantages_B: A, from the rewards.
        logprobs_BT: log π under the *present* weights, not those that sampled. For a token sampled by another policy μ, the
            objective's ratio π/μ then gives the gradient of KL(π ‖ q), whatever μ was. With log q − log μ the loss would descend
            KL(π ‖ q) − KL(π ‖ μ): a student equal to its teacher would still be pushed away from its earlier self.
        teacher_BT: log q.
        mask_BT: True at response tokens.
        config: The two weights.

    Returns:
        [B, T] without gradient, 0 outside the mask; float32.
    """
    distillation_BT = config.coefficient * (teacher_BT - logprobs_BT.detach())
    return (config.reward_weight * advantages_B[:, None] + distillation_BT).masked_fill(~mask_BT, 0)
