"""Log-probabilities and entropies of chosen tokens, a chunk at a time: no [tokens × vocabulary] tensor exists.

The backward pass computes each chunk's logits again, and from them the gradients at once; autograd never sees logits.

Shapes: N chosen tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 25
"""Logits that exist at once: 128 MiB in float32."""
BANNED_LOGIT = -1e30
"""Finite, unlike −inf: its probability is 0, and so is 0 · logit in the entropy."""


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    banned_ids: Tensor,
    *,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """log p(target | hidden) and the entropy of the whole distribution, as the engine samples from it.

    Args:
        hidden_NH: Hidden states that predict each target.
        weight_VH: The output embedding.
        targets_N: int64, the tokens that were chosen.
        banned_ids: int64, tokens that the engine never samples: left out of the normalisation here as there.
        temperature: Divides the logits; the engine's sampling temperature.
        chunk_elements: Logits that exist at once; one token's at least.

    Returns:
        Log-probabilities [N] with gradient, and entropies [N] in nats without; both float32 (float64 of float64).
    """
    if torch.is_autocast_enabled(hidden_NH.device.type):
        dtype = torch.get_autocast_dtype(hidden_NH.device.type)
        # Once for all chunks, and by autograd's own cast: the gradient comes back in the parameter's precision.
        hidden_NH, weight_VH = hidden_NH.to(dtype), weight_VH.to(dtype)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        return _TokenLogprobs.apply(hidden_NH, weight_VH, targets_N, banned_ids, temperature, chunk_elements)


class _TokenLogprobs(torch.autograd.Function):
    """With z = h Wᵀ / temperature and p = softmax(z): ∂ log p_target / ∂z = 1_target − p."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        banned_ids: Tensor,
        temperature: float,
        chunk_elements: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        logprobs_N, entropies_N, normalisers_N = hidden_NH.new_empty(3, len(hidden_NH), dtype=dtype).unbind()
        for part in _chunks(len(hidden_NH), max(1, chunk_elements // len(weight_VH))):
            logits_CV = (hidden_NH[part] @ weight_VH.T).to(dtype)
            if temperature != 1.0:
                logits_CV /= temperature
            logits_CV.index_fill_(1, banned_ids, BANNED_LOGIT)
            target_C = logits_CV.gather(1, targets_N[part, None])[:, 0]
            target_C.masked_fill_(target_C <= BANNED_LOGIT, float("-inf"))
            largest_C1 = logits_CV.max(1, keepdim=True).values
            logits_CV -= largest_C1
            odds_CV = logits_CV.exp()  # p · total
            total_C = odds_CV.sum(1)
            log_total_C = total_C.log()
            normalisers_N[part] = log_total_C + largest_C1[:, 0]
            logprobs_N[part] = target_C - normalisers_N[part]
            entropies_N[part] = log_total_C - torch.linalg.vecdot(odds_CV, logits_CV) / total_C
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, banned_ids, normalisers_N)
        ctx.temperature, ctx.chunk_elements = temperature, chunk_elements
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, targets_N, banned_ids, normalisers_N = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.zeros_like(hidden_NH, dtype=normalisers_N.dtype) if for_hidden else None
        weight_gradient = torch.empty_like(weight_VH) if for_weight else None
        scale_N1 = gradients[0][:, None] / ctx.temperature
        banned = banned_ids.tolist()
        # Chunks of the vocabulary this time, now that the normalisers are known: each row of the weight's gradient is then
        # written once, in its own precision, and only the small gradient of the hidden states is a running sum.
        for part in _chunks(len(weight_VH), max(1, ctx.chunk_elements // max(1, len(hidden_NH)))):
            slope_NC = (hidden_NH @ weight_VH[part].T).to(normalisers_N.dtype)
            if ctx.temperature != 1.0:
                slope_NC /= ctx.temperature
            slope_NC.sub_(normalisers_N[:, None]).exp_().mul_(-scale_N1)
            column_N1 = targets_N[:, None] - part.start
            inside_N1 = (column_N1 >= 0) & (column_N1 < slope_NC.shape[1])
            slope_NC.scatter_add_(1, column_N1.clamp(0, slope_NC.shape[1] - 1), scale_N1 * inside_N1)
            if columns := [token - part.start for token in banned if part.start <= token < part.stop]:
                slope_NC[:, columns] = 0
            slope_NC = slope_NC.to(weight_VH.dtype)
            if hidden_gradient is not None:
                hidden_gradient += slope_NC @ weight_VH[part]
            if weight_gradient is not None:
                torch.mm(slope_NC.T, hidden_NH, out=weight_gradient[part])
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient.to(hidden_NH.dtype)
        return hidden_gradient, weight_gradient, None, None, None, None


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]
