"""Parameters that are not trained: those that a checkpoint's config excludes, and LoRA's base weights, in half the memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from policies.export import published_parameters
from policies.loading import model_folder
from policies.lora import EXPERT_PARAMETERS
from policies.small.transplant import rescaled_parameters
from policies.weight_files import open_weights


def frozen_parameters(model: PreTrainedModel) -> list[str]:
    """Returns the names of parameters that the checkpoint's config excludes from training (`config.frozen_parameters`)."""
    names = getattr(model.config, "frozen_parameters", None)
    # Transplanted checkpoints written before the field existed lack it.
    return list(rescaled_parameters(model) if names is None else names)


def halve_frozen(model: PreTrainedModel, path_or_name: Path | str) -> None:
    """Keeps frozen matrices in bfloat16, in which autocast and FSDP2 multiply them, if the checkpoint has them in bfloat16.

    Nothing is lost. Embeddings and norms stay in float32, in which they are computed. Autocast does not reach the products of
    experts: these are in bfloat16 afterwards, as the engine's and FSDP2's.

    Args:
        model: A policy with float32 parameters, also on the meta device; the frozen ones do not require gradients.
        path_or_name: The folder or hub name of its checkpoint.
    """
    multiplied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with ExitStack() as stack:
        weights = open_weights(model_folder(str(path_or_name)), stack)
        for name, parameter in published_parameters(model):
            is_matrix = id(parameter) in multiplied - looked_up or name.endswith(EXPERT_PARAMETERS)
            if parameter.requires_grad or not is_matrix or name not in weights:
                continue
            if weights[name].get_slice(name).get_dtype() == "BF16":
                parameter.data = parameter.data.to(torch.bfloat16)
