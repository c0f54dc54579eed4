"""What a step took, and what its responses are like."""

from __future__ import annotations

import time

import numpy as np

from rl.generation.batches import Batch, has_variance
from rollout.types import sampled_mask, token_versions


class Stopwatch:
    """Seconds of the phases of one step, one behind the other."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self._seconds[phase] = now - self._last
        self._last = now

    def metrics(self) -> dict[str, float]:
        """`time/<phase>` and `time/step` in seconds, and `time/learner_idle`, the share of the step in which nothing is learnt."""
        seconds = {f"time/{phase}": value for phase, value in self._seconds.items()}
        step = self._last - self._begin
        return {**seconds, "time/step": step, "time/learner_idle": 1 - self._seconds["learn"] / step}


def rollout_metrics(batch: Batch, policy_version: int) -> dict[str, float]:
    """How long responses are and took, how old, and how many groups can teach anything.

    Args:
        batch: What the step learns from.
        policy_version: The learner's, before it learns.

    Returns:
        `rollout/response_tokens` (mean, sampled ones), `rollout/turns` (mean, of episodes), `rollout/truncated` (share cut at
        a limit), `rollout/groups_without_variance` (share whose rewards are all equal), `rollout/refills` (groups set aside for
        others), `rollout/staleness` (mean over tokens, in versions), `rollout/tokens_per_second` while generating, and
        `time/generate` and `time/score` in seconds.
    """
    completions = [completion for group in batch.groups for completion in group.completions]
    versions = np.concatenate([token_versions(completion)[sampled_mask(completion)] for completion in completions])
    turns = [len(completion.turns) for completion in completions if completion.turns is not None]
    return {
        "rollout/response_tokens": len(versions) / len(completions),
        "rollout/truncated": float(np.mean([completion.finish_reason == "length" for completion in completions])),
        "rollout/groups_without_variance": float(np.mean([not has_variance(scores) for scores in batch.scores])),
        "rollout/refills": float(batch.num_refills),
        "rollout/staleness": float(np.mean(policy_version - versions)) if len(versions) else 0.0,
        "rollout/tokens_per_second": len(versions) / batch.seconds_to_generate,
        "time/generate": batch.seconds_to_generate,
        "time/score": batch.seconds_to_score,
        **({"rollout/turns": sum(turns) / len(turns)} if turns else {}),
    }
