"""Policy module of the learner: token ids and pictures → log-probabilities of the response tokens.

Shapes: B sequences, L tokens, T = L − 1 predicted positions, S tokens of a row, N response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from policies.fused_norms import use_fused_kernels
from policies.inputs import VisionInputs, hidden_states
from policies.loading import vision_token_ids
from policies.logprobs import token_logprobs
from policies.packing import Row, use_packed_attention
from policies.vision_tower import use_fast_vision


class ResponseLogprobs(nn.Module):
    """A model and its log-probabilities as one module, so that FSDP2 gathers the output matrix before it is used.

    Args:
        model: A Qwen3-VL, dense or MoE.
        temperature: Divides the logits; the engine's sampling temperature.
        autocast: Precision of the matrix products; None: that of the parameters.
        packed: Prepares the model for packed rows.
        fused: Uses fused norms, for GPUs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float,
        autocast: torch.dtype | None = None,
        packed: bool = False,
        fused: bool = False,
    ) -> None:
        super().__init__()
        use_fast_vision(model)
        if packed:
            use_packed_attention(model)
        if fused:
            use_fused_kernels(model)
        self.model = model
        self.temperature, self.autocast = temperature, autocast
        self.banned_ids = torch.tensor(vision_token_ids(model.config))

    def forward(
        self,
        tokens_BL: Tensor,
        positions_3BL: Tensor,
        mask_BT: Tensor,
        vision: VisionInputs | None,
        row: Row,
    ) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities [N] and entropies [N] of the next tokens under `mask_BT`, in row order."""
        device = tokens_BL.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            hidden_SH = hidden_states(self.model, tokens_BL, positions_3BL, vision, row)
            return token_logprobs(
                hidden_SH[row.places_BL[:, :-1][mask_BT]],
                self.model.get_output_embeddings().weight,
                tokens_BL[:, 1:][mask_BT],
                self.banned_ids,
                temperature=self.temperature,
            )
