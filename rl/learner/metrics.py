"""Metrics of an update, merged over the microbatches of all ranks.

Only sums, weighted means and one number per token for percentiles leave a rank, and only towards rank 0.

Shapes: B sequences, T predicted positions, N response tokens.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.corrections import MismatchSums, mismatch_metrics, mismatch_sums
from rl.learner.microbatches import Microbatch
from rl.objectives.penalty import kl_estimates
from rl.objectives.token_weights import WeightSums, weight_metrics, weight_sums
from rl.sapo import masked_log_ratio, ratio_metrics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenTensors:
    """The tensors of one microbatch's loss, [B, T] where not said otherwise, without gradient."""

    logprobs_BT: Tensor
    """Log-probabilities under the weights that the update started from; 0 outside the mask."""
    old_logprobs_BT: Tensor
    """Log-probabilities under the policy that sampled."""
    begun_logprobs_BT: Tensor
    """Log-probabilities under the weights that the step began with."""
    correction_BT: Tensor
    """Importance weights of the mismatch correction."""
    omega_BT: Tensor
    """The weights ω that the objective gives to tokens, from `token_weights`."""
    loss_mask_BT: Tensor
    """bool, the response tokens that the off-policy sequence mask leaves in the loss."""
    advantages: Tensor
    """[B], or [B, T] with a teacher."""
    entropies_N: Tensor
    """Entropy at each response token, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateRecord:
    """One microbatch's contribution to the metrics of an update; on the CPU."""

    sums: Mapping[str, float]
    """Metrics that are sums over microbatches: the loss and its penalties."""
    means: Mapping[str, float]
    """Metrics that are means, minima or maxima over the microbatch: the objective's, and the entropy."""
    counts: Mapping[str, int]
    """Weights of the means: `tokens`, `sequences` with tokens, `positive` and `negative` tokens by their advantage, all of them in
    the loss; `entropy` tokens of the response."""
    mismatch: MismatchSums
    """Sums of the mismatch between engine and learner."""
    weights: WeightSums
    """Sums of the objective's weights."""
    ratios_N: Tensor
    """float32, importance ratio of each response token."""
    kl_sum: float
    """Σ over response tokens of the estimate of KL(π ‖ π_θ) in nats; π has the weights that the step began with."""
    gaps_M: Tensor
    """float32, |log p(learner) − log p(engine)| of each on-policy token."""
    nonfinite_prompts: Sequence[str]
    """Prompts of sequences with a log-probability that is not finite."""


def record_update(
    batch: Microbatch, tensors: TokenTensors, objective_metrics: Mapping[str, Tensor], sums: Mapping[str, Tensor]
) -> UpdateRecord:
    """Summarises one microbatch.

    Args:
        batch: The microbatch, on the learner's device.
        tensors: Its loss's tensors.
        objective_metrics: The metrics that the objective returned.
        sums: Loss and penalties: shares of the minibatch's values.
    """
    mask_BT, loss_BT = batch.mask_BT, tensors.loss_mask_BT
    new_BT, old_BT = tensors.logprobs_BT, tensors.old_logprobs_BT
    log_ratio_BT = masked_log_ratio(new_BT, old_BT, mask_BT)
    column = tensors.advantages[:, None] if tensors.advantages.dim() == 1 else tensors.advantages
    gap_BT = (old_BT - batch.rollout_logprobs_BT).abs()
    finite_B = new_BT.isfinite().all(1).tolist()
    return UpdateRecord(
        sums=_as_floats(sums),
        means=_as_floats({f"policy/{name}": value for name, value in objective_metrics.items()})
        | {"policy/entropy": float(tensors.entropies_N.mean()) if len(tensors.entropies_N) else 0.0},
        counts={
            "tokens": int(loss_BT.sum()),
            "sequences": int(loss_BT.any(1).sum()),
            "positive": int((loss_BT & (column > 0)).sum()),
            "negative": int((loss_BT & (column < 0)).sum()),
            "entropy": int(mask_BT.sum()),
        },
        mismatch=mismatch_sums(old_BT, batch.rollout_logprobs_BT, tensors.correction_BT, mask_BT),
        weights=weight_sums(tensors.omega_BT, log_ratio_BT, batch.stale_BT, tensors.advantages, (mask_BT, loss_BT)),
        kl_sum=float(kl_estimates(masked_log_ratio(new_BT, tensors.begun_logprobs_BT, mask_BT)).double().sum()),
        ratios_N=log_ratio_BT.exp()[mask_BT].cpu(),
        gaps_M=gap_BT[mask_BT & ~batch.stale_BT].cpu(),
        nonfinite_prompts=[prompt for prompt, finite in zip(batch.prompt_ids, finite_B, strict=True) if not finite],
    )


def update_metrics(records: Sequence[UpdateRecord]) -> dict[str, float]:
    """Metrics of a whole update from the records of all its microbatches; empty without records."""
    if not records:
        return {}
    metrics = {name: sum(record.sums[name] for record in records) for name in records[0].sums}
    for name in records[0].means:
        values = [record.means[name] for record in records]
        metrics[name] = _merged(name, values, [record.counts[_weight_of(name)] for record in records])
    if "policy/ratio_p50" in metrics:  # a percentile has no merge: rank all tokens
        ratios = ratio_metrics(torch.cat([record.ratios_N for record in records]))
        metrics |= {f"policy/{name}": float(value) for name, value in ratios.items()}
    num_tokens = max(1, sum(record.counts["entropy"] for record in records))
    return (
        metrics
        | {"policy/approx_kl": sum(record.kl_sum for record in records) / num_tokens}
        | mismatch_metrics([record.mismatch for record in records])
        | weight_metrics([record.weights for record in records])
    )


def mean_update(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of a step's metrics. A metric that some updates lack, as one of stale tokens, is a mean over the others.

    Args:
        reports: The metrics of each update.
    """
    values: dict[str, list[float]] = {}
    for report in reports:
        for name, value in report.items():
            values.setdefault(name, []).append(value)
    return {name: sum(column) / len(column) for name, column in values.items()}


def last_update(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Gates and distance of a step's last update, `…_last`: its samples are as off-policy as the step makes them.

    Args:
        reports: The metrics of each update.
    """
    if len(reports) < 2:
        return {}
    names = ("policy/gate_mean", "policy/approx_kl")
    return {f"{name}_last": value for name, value in reports[-1].items() if name.startswith(names)}


def gap_metrics(records: Sequence[UpdateRecord]) -> dict[str, float]:
    """Mean and maximum of |log p(learner) − log p(engine)| over the on-policy tokens of a step's updates."""
    gaps_M = torch.cat([record.gaps_M for record in records]) if records else torch.empty(0)
    if not len(gaps_M):
        return {}
    return {"rollout/logprob_gap_mean": float(gaps_M.mean()), "rollout/logprob_gap_max": float(gaps_M.max())}


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of its GPU if it has one, else its resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _weight_of(name: str) -> str:
    """The count that weights a mean: tokens of one sign for `_positive` and `_negative`, sequences for `_variance`."""
    if name == "policy/entropy":
        return "entropy"
    suffix = name.rpartition("_")[2]
    return {"positive": "positive", "negative": "negative", "variance": "sequences"}.get(suffix, "tokens")


def _merged(name: str, values: Sequence[float], weights: Sequence[int]) -> float:
    if name.endswith("_min"):
        return min(values)
    if name.endswith("_max"):
        return max(values)
    # In float64 a float32 mean times its count is exact: of one microbatch the result is its own to the last bit.
    counted = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    if not counted:
        return values[0]
    return sum(value * weight for value, weight in counted) / sum(weight for _, weight in counted)


def _as_floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """All values as floats, by one transfer from the device instead of one for each."""
    if not values:
        return {}
    tensors = [torch.as_tensor(value).detach().double() for value in values.values()]
    device = max((tensor.device for tensor in tensors), key=lambda device: device.type == "cuda")
    return dict(zip(values, torch.stack([tensor.to(device) for tensor in tensors]).tolist(), strict=True))
