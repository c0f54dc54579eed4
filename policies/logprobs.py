"""Log-probabilities and entropies of given tokens, in chunks of the vocabulary: no [tokens × vocabulary] tensor exists.

The backward pass recomputes each chunk's logits and immediately turns them into gradients, so autograd stores no logits.

Shapes: N tokens, H hidden size, V vocabulary, C tokens of a vocabulary chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 25
"""Most logits in memory at once: 128 MiB in float32."""
ALIGNMENT = 64
"""Chunk widths are multiples of this: on a GPU, products of odd widths use kernels several times slower."""
BANNED_LOGIT = -1e30
"""Finite, unlike −inf: the probability is 0, and so is 0 · logit in the entropy."""


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    banned_ids: Tensor,
    *,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Returns log p(target | hidden) and the entropy of the distribution that the engine samples from.

    Args:
        hidden_NH: Hidden states that predict each target.
        weight_VH: The output embedding.
        targets_N: int64, the sampled tokens.
        banned_ids: int64, tokens that the engine never samples; both engine and learner leave them out of the normalisation.
        temperature: Divides the logits; the engine's sampling temperature.
        chunk_elements: Most logits in memory at once. A chunk has all N tokens and at least one column of the vocabulary.

    Returns:
        Log-probabilities [N] with gradient, and entropies [N] in nats without; both float32 (float64 of float64).
    """
    if torch.is_autocast_enabled(hidden_NH.device.type):
        dtype = torch.get_autocast_dtype(hidden_NH.device.type)
        # One cast for all chunks, by autograd: the gradient returns in the parameter's precision.
        hidden_NH, weight_VH = hidden_NH.to(dtype), weight_VH.to(dtype)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        settings = _LogitSettings(banned_ids.tolist(), temperature, chunk_elements)
        return _TokenLogprobs.apply(hidden_NH, weight_VH, targets_N, settings)


class _LogitSettings(NamedTuple):
    """Arguments of `token_logprobs` without a gradient."""

    banned: Sequence[int]
    temperature: float
    chunk_elements: int


class _TokenLogprobs(torch.autograd.Function):
    """Autograd function with z = h Wᵀ / temperature and p = softmax(z): ∂ log p_target / ∂z = 1_target − p."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, settings: _LogitSettings
    ) -> tuple[Tensor, Tensor]:
        """Passes over the vocabulary once, and keeps only the normaliser [N, 1]."""
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N)
        ctx.settings = settings
        # Online softmax: Σ e^(z − m) and Σ e^(z − m) (z − m) over the vocabulary so far, with m the largest z so far.
        dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        largest_N1 = hidden_NH.new_full((len(hidden_NH), 1), BANNED_LOGIT, dtype=dtype)
        total_N1, moment_N1, target_N1 = largest_N1.new_zeros(3, len(hidden_NH), 1).unbind()
        for part, logits_NC in _chunks(hidden_NH, weight_VH, settings):
            column_N1, inside_N1 = _columns(targets_N, part)
            target_N1 = torch.where(inside_N1, logits_NC.gather(1, column_N1), target_N1)
            new_largest_N1 = torch.maximum(largest_N1, logits_NC.max(1, keepdim=True).values)
            shift_N1 = largest_N1 - new_largest_N1
            decay_N1 = shift_N1.exp()
            odds_NC = logits_NC.sub_(new_largest_N1).exp()
            moment_N1 = decay_N1 * (moment_N1 + shift_N1 * total_N1)
            moment_N1 += torch.linalg.vecdot(odds_NC, logits_NC)[:, None]
            total_N1 = decay_N1 * total_N1 + odds_NC.sum(1, keepdim=True)
            largest_N1 = new_largest_N1
        ctx.normaliser_N1 = total_N1.log() + largest_N1
        logprobs_N = (target_N1 - ctx.normaliser_N1)[:, 0]
        logprobs_N = logprobs_N.masked_fill(target_N1[:, 0] <= BANNED_LOGIT, float("-inf"))
        entropies_N = (total_N1.log() - moment_N1 / total_N1)[:, 0]
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Passes over the vocabulary again, and recomputes the logits."""
        hidden_NH, weight_VH, targets_N = ctx.saved_tensors
        settings: _LogitSettings = ctx.settings
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.zeros_like(hidden_NH, dtype=ctx.normaliser_N1.dtype) if for_hidden else None
        # A chunk has all N tokens, so each row is written once, in its own precision.
        weight_gradient = torch.empty_like(weight_VH) if for_weight else None
        scale_N1 = gradients[0][:, None] / settings.temperature
        for part, logits_NC in _chunks(hidden_NH, weight_VH, settings):
            column_N1, inside_N1 = _columns(targets_N, part)
            slope_NC = logits_NC.sub_(ctx.normaliser_N1).exp_().mul_(-scale_N1)
            slope_NC.scatter_add_(1, column_N1, scale_N1 * inside_N1)
            slope_NC[:, _banned_columns(settings.banned, part)] = 0
            slope_NC = slope_NC.to(weight_VH.dtype)
            if hidden_gradient is not None:
                hidden_gradient += slope_NC @ weight_VH[part]
            if weight_gradient is not None:
                torch.mm(slope_NC.T, hidden_NH, out=weight_gradient[part])
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient.to(hidden_NH.dtype)
        return hidden_gradient, weight_gradient, None, None


def _chunks(hidden_NH: Tensor, weight_VH: Tensor, settings: _LogitSettings) -> Iterator[tuple[slice, Tensor]]:
    """Yields ranges of the vocabulary and the logits [N, C] of all tokens in each."""
    width = max(1, settings.chunk_elements // max(1, len(hidden_NH)))
    width -= width % ALIGNMENT if width > ALIGNMENT else 0
    for start in range(0, len(weight_VH), width):
        part = slice(start, min(start + width, len(weight_VH)))
        logits_NC = (hidden_NH @ weight_VH[part].T).to(torch.promote_types(hidden_NH.dtype, torch.float32))
        if settings.temperature != 1.0:
            logits_NC /= settings.temperature
        logits_NC[:, _banned_columns(settings.banned, part)] = BANNED_LOGIT
        yield part, logits_NC


def _banned_columns(banned: Sequence[int], part: slice) -> list[int]:
    return [token - part.start for token in banned if part.start <= token < part.stop]


def _columns(targets_N: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Returns [N, 1], each target's column in this chunk, and [N, 1], True if the target is in this chunk."""
    column_N1 = targets_N[:, None] - part.start
    inside_N1 = (column_N1 >= 0) & (column_N1 < part.stop - part.start)
    return column_N1.clamp(0, part.stop - part.start - 1), inside_N1
