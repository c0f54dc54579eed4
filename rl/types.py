"""What travels inside the learner.

Shapes: L tokens of a sequence (prompt and response), B sequences, T = L − 1 predicted positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from policies.inputs import VisionInputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One completion, ready to be learnt from.

    Attributes:
        prompt_id: The prompt it answers.
        token_ids: [L] int32, prompt and response, exactly the engine's tokens.
        loss_mask: [L] bool, True at the tokens that the policy chose.
        rollout_logprobs: [L] float32, the engine's log-probability of each chosen token; 0 elsewhere.
        advantage: The advantage of the whole response.
        images: PIL images, in the order of their placeholders. Siblings share the objects, and pickle keeps them shared.
        stale_mask: [L] bool, True at tokens that an older policy than the learner's has sampled; None if nowhere.
        routed_experts: [L, layers, top_k] int16, the experts that the engine chose, −1 where it does not say; None if nowhere.
        videos: Videos (`rollout.types.Video`), likewise.
        teacher_logprobs: [L] float32, the teacher's log-probability of each chosen token; 0 elsewhere; None without a teacher.
    """

    prompt_id: str
    token_ids: np.ndarray
    loss_mask: np.ndarray
    rollout_logprobs: np.ndarray
    advantage: float
    images: Sequence[Any]
    stale_mask: np.ndarray | None = None
    routed_experts: np.ndarray | None = None
    videos: Sequence[Any] = ()
    teacher_logprobs: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Microbatch:
    """Sequences of one forward and backward pass, padded on the right.

    Attributes:
        tokens_BL: int64 token ids.
        positions_3BL: int64 positions of interleaved MRoPE (time, height, width).
        mask_BT: bool, True where the *next* token is one that the policy chose.
        rollout_logprobs_BT: float32, the engine's log-probabilities of those next tokens.
        stale_BT: bool, True where an older policy than the learner's has sampled that next token.
        advantages_B: float32.
        lengths_B: int64, tokens of each sequence.
        vision: The images and videos, each distinct one once; None for text only.
        prompt_ids: [B] whose sequences these are, to name in errors.
        experts_BLKk: int16, the experts that the engine chose in each of K layers, −1 where unknown; None if everywhere.
        teacher_logprobs_BT: float32, the teacher's log-probabilities of the next tokens; None without a teacher.
        idle: Not to learn from: it keeps a rank that has run out of sequences in step with the others.
    """

    tokens_BL: Tensor
    positions_3BL: Tensor
    mask_BT: Tensor
    rollout_logprobs_BT: Tensor
    stale_BT: Tensor
    advantages_B: Tensor
    lengths_B: Tensor
    vision: VisionInputs | None
    prompt_ids: Sequence[str]
    experts_BLKk: Tensor | None = None
    teacher_logprobs_BT: Tensor | None = None
    idle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step of the learner did.

    Attributes:
        metrics: Scalars under `loss/`, `policy/`, `rollout/`, `time/` and `memory/`.
        num_updates: Optimizer updates that were applied.
    """

    metrics: Mapping[str, float]
    num_updates: int


class RunStopped(RuntimeError):
    """Going on would waste GPU time; the message says why and what to do."""
