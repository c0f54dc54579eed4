"""What the learner reports of an update, over the microbatches of all ranks at once: the mean of means is not the mean.

Shapes: B sequences, T predicted positions, N response tokens.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl.corrections import mismatch_metrics
from rl.learner.ranks import gather
from rl.objectives import Objective
from rl.types import Microbatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What an update made of some sequences; all on the CPU, [B, T] and 0 outside the mask where not said otherwise.

    Attributes:
        prompt_ids: [B] whose sequences these are.
        advantages: [B] float32, or [B, T] where a teacher tells tokens apart.
        mask_BT: bool, response tokens.
        new_BT: Log-probabilities under the weights that the update started from.
        old_BT: Those of the old policy.
        rollout_BT: Those of the engine.
        stale_BT: bool, where an older policy has sampled; there `old_BT` is `rollout_BT`.
        weights_BT: The mismatch corrections' weights.
        entropies_N: Of every response token's distribution.
    """

    prompt_ids: Sequence[str]
    advantages: Tensor
    mask_BT: Tensor
    new_BT: Tensor
    old_BT: Tensor
    rollout_BT: Tensor
    stale_BT: Tensor
    weights_BT: Tensor
    entropies_N: Tensor


def outcome(
    batch: Microbatch, advantages: Tensor, new_BT: Tensor, old_BT: Tensor, weights_BT: Tensor, entropies_N: Tensor
) -> Outcome:
    """One microbatch's outcome."""
    return Outcome(
        prompt_ids=batch.prompt_ids,
        advantages=advantages.cpu(),
        mask_BT=batch.mask_BT,
        new_BT=new_BT.detach().cpu(),
        old_BT=old_BT.cpu(),
        rollout_BT=batch.rollout_logprobs_BT,
        stale_BT=batch.stale_BT,
        weights_BT=weights_BT.cpu(),
        entropies_N=entropies_N.cpu(),
    )


def gather_outcomes(own: Sequence[Outcome]) -> Outcome:
    """One outcome of the whole minibatch, from the microbatches of every rank."""
    parts = [part for its in gather(own) for part in its]
    return Outcome(
        prompt_ids=[prompt_id for part in parts for prompt_id in part.prompt_ids],
        advantages=_stack([part.advantages for part in parts]),
        mask_BT=_stack([part.mask_BT for part in parts]),
        new_BT=_stack([part.new_BT for part in parts]),
        old_BT=_stack([part.old_BT for part in parts]),
        rollout_BT=_stack([part.rollout_BT for part in parts]),
        stale_BT=_stack([part.stale_BT for part in parts]),
        weights_BT=_stack([part.weights_BT for part in parts]),
        entropies_N=torch.cat([part.entropies_N for part in parts]),
    )


def update_metrics(of: Outcome, objective: Objective, counts: Mapping[str, Any]) -> dict[str, float]:
    """The objective's value and its metrics, entropy, and the mismatch between engine and learner."""
    loss, metrics = objective(of.new_BT, of.old_BT, of.advantages, of.mask_BT, **counts)
    report = {f"policy/{name}": float(value) for name, value in metrics.items()}
    report |= {"loss/objective": float(loss), "policy/entropy": float(of.entropies_N.mean())}
    return report | mismatch_metrics(of.old_BT, of.rollout_BT, of.weights_BT, of.mask_BT)


def nonfinite_prompts(of: Outcome) -> list[str]:
    """The prompts of sequences with a log-probability that is not finite."""
    finite_B = of.new_BT.isfinite().all(1).tolist()
    return [prompt_id for prompt_id, finite in zip(of.prompt_ids, finite_B, strict=True) if not finite]


def gap_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean and maximum of |log p(learner) − log p(engine)| over the response tokens that the same weights have sampled."""
    gaps_N = torch.cat([(of.old_BT - of.rollout_BT).abs()[of.mask_BT & ~of.stale_BT] for of in outcomes])
    if not len(gaps_N):
        return {}
    return {"rollout/logprob_gap_mean": float(gaps_N.mean()), "rollout/logprob_gap_max": float(gaps_N.max())}


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has held so far, on its GPU if it has one, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _stack(pieces: Sequence[Tensor]) -> Tensor:
    """Matrices of different widths under one another, padded with zeros on the right; vectors behind one another."""
    if pieces[0].dim() == 1:
        return torch.cat(list(pieces))
    width = max(piece.shape[1] for piece in pieces)
    return torch.cat([pad(piece, (0, width - piece.shape[1])) for piece in pieces])
