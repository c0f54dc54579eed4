"""Log-probabilities and entropies of chosen tokens, a chunk at a time: no [tokens × vocabulary] tensor outlives its chunk.

Shapes: N chosen tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 25
"""Logits that exist at once: 128 MiB in float32."""


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    banned_ids: Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """log p(target | hidden) and the entropy of the whole distribution, as the engine samples from it.

    Args:
        hidden_NH: Hidden states that predict each target.
        weight_VH: The output embedding.
        targets_N: int64, the tokens that were chosen.
        banned_ids: int64, tokens that the engine never samples: left out of the normalisation here as there.
        temperature: Divides the logits; the engine's sampling temperature.

    Returns:
        Log-probabilities [N] with gradient, and entropies [N] in nats without; both float32.
    """
    chunk = max(1, CHUNK_ELEMENTS // len(weight_VH))
    pieces = []
    for start in range(0, len(hidden_NH), chunk):
        args = (hidden_NH[start : start + chunk], weight_VH, targets_N[start : start + chunk], banned_ids, temperature)
        # A single chunk's logits may as well be kept for the backward pass; of several, only one may exist at a time.
        if len(hidden_NH) > chunk and torch.is_grad_enabled():
            pieces.append(checkpoint(_chunk_logprobs, *args, use_reentrant=False))
        else:
            pieces.append(_chunk_logprobs(*args))
    if not pieces:
        empty = hidden_NH.float().sum(1)
        return empty, empty.detach()
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies).detach()


def _chunk_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, banned_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_NV = (hidden_NH @ weight_VH.T).float()
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    logits_NV = logits_NV.index_fill(1, banned_ids, float("-inf"))
    log_normaliser_N = logits_NV.logsumexp(1)
    logprobs_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - log_normaliser_N
    with torch.no_grad():
        probabilities_NV = (logits_NV - log_normaliser_N[:, None]).exp()
        # p · logit with p = 0 and logit = −inf is NaN: give banned tokens a finite logit.
        mean_logit_N = (probabilities_NV * logits_NV.index_fill(1, banned_ids, 0.0)).sum(1)
        entropies_N = log_normaliser_N - mean_logit_N
    return logprobs_N, entropies_N
