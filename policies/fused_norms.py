"""Fused RMSNorm for Qwen3-VL on a GPU, with the same results up to rounding.

transformers' RMSNorm is a sequence of eight kernels, four times in every layer. A small model waits for their launches longer than
it computes. torch has a single kernel.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

NORMS = (Qwen3VLTextRMSNorm, Qwen3VLMoeTextRMSNorm)


def use_fused_kernels(model: nn.Module) -> None:
    """Makes the language model's norms run as one kernel each, and disables cuDNN's attention."""
    # cuDNN re-plans for each sequence length, which takes longer than the attention itself. In RL no two lengths are equal.
    torch.backends.cuda.enable_cudnn_sdp(False)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.forward = MethodType(fused_norm, module)


def fused_norm(module: Qwen3VLTextRMSNorm | Qwen3VLMoeTextRMSNorm, hidden_states: Tensor) -> Tensor:
    """Replaces the module's forward; computes in float32, with the weight in the precision of `hidden_states`."""
    device = hidden_states.device.type
    weight = module.weight.to(hidden_states.dtype)
    with torch.autocast(device, enabled=False):
        normalised = rms_norm(hidden_states, (hidden_states.shape[-1],), weight, module.variance_epsilon)
    # Under autocast each of the following matrix products would otherwise cast it and keep a copy for the backward pass.
    return normalised.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normalised
