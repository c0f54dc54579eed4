"""A worker extension that makes a teacher's vLLM score tokens as a student samples them. vLLM's worker imports it by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class TeacherWorker:
    """Methods that vLLM adds to its worker (`worker_extension_cls`), for `collective_rpc`.

    vLLM 0.32 computes log-probabilities of a prompt from the raw logits, whatever `logprobs_mode` is ("prompt tokens skip sampling
    processors"): before temperature, and normalised over all tokens, banned ones included. So the model itself is changed to return
    processed logits.
    """

    get_model: Callable[[], nn.Module]

    def score_as_sampled(self, banned_ids: Sequence[int], temperature: float) -> None:
        """Makes the model divide its logits by the temperature and leave out banned tokens, from now on."""
        model = self.get_model()
        model.compute_logits = as_sampled(model.compute_logits, banned_ids, temperature)


def as_sampled(
    compute_logits: Callable[..., Tensor | None], banned_ids: Sequence[int], temperature: float
) -> Callable[..., Tensor | None]:
    """Returns a `compute_logits` [N, V] with temperature and bans, in float32 like the learner's."""
    banned = list(banned_ids)

    def compute(*args: object, **options: object) -> Tensor | None:
        logits_NV = compute_logits(*args, **options)
        if logits_NV is None:  # only one of the tensor parallel workers has them
            return None
        logits_NV = logits_NV.float() / temperature
        logits_NV[:, banned] = -torch.inf
        return logits_NV

    return compute
