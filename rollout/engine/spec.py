"""The specification of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rollout.config import Backend, RolloutConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The specification of an engine and of its replacements."""

    model: str | Path
    """A folder or hub name that every engine's node can read."""
    config: RolloutConfig
    """The engine options."""
    backend: Backend
    """Transport of new weights."""
    banned_ids: tuple[int, ...]
    """Tokens that are never sampled: a vision placeholder in a response would break the learner's forward pass."""
    policy_version: int = 0
    """The version of the weights in `model`."""
    lora_rank: int = 0
    """Rank of the adapters, if adapters arrive instead of weights; else 0."""
    return_routed_experts: bool = False
    """Returns the experts that a MoE chose with each completion; on GPUs only."""
    student: str | Path | None = None
    """Set for a teacher's engines, which score and sample nothing (`Sampling.max_tokens` 0): the policy that they score. Its chat
    template and pixel limits are used, not the teacher's."""
