"""What a teacher's vLLM does before it tells log-probabilities. Runs inside vLLM's worker, which imports this file by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ReadsAsSampled:
    """Methods that vLLM adds to its worker (`worker_extension_cls`), for `collective_rpc`.

    vLLM's log-probabilities of a prompt are raw whatever `logprobs_mode` says (0.32: "prompt tokens skip sampling processors"):
    of the logits before temperature, normalised over all tokens, those included that no student may sample. So the model's own
    last step is made to give what is sampled from.
    """

    get_model: Callable[[], nn.Module]

    def read_as_sampled(self, banned_ids: Sequence[int], temperature: float) -> None:
        """Has the model's logits divided by the temperature, and without the banned tokens, from now on."""
        model = self.get_model()
        model.compute_logits = as_sampled(model.compute_logits, banned_ids, temperature)


def as_sampled(
    compute_logits: Callable[..., Tensor | None], banned_ids: Sequence[int], temperature: float
) -> Callable[..., Tensor | None]:
    """A model's `compute_logits` [N, V] with temperature and bans, in float32 as the learner has them."""
    banned = list(banned_ids)

    def compute(*args: object, **options: object) -> Tensor | None:
        logits_NV = compute_logits(*args, **options)
        if logits_NV is None:  # of tensor parallel workers, one alone has them
            return None
        logits_NV = logits_NV.float() / temperature
        logits_NV[:, banned] = -torch.inf
        return logits_NV

    return compute
