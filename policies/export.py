"""The policy's parameters under the names and layouts of the published checkpoint, for vLLM and for the disk.

transformers keeps the experts of a MoE layer as [E, out, in]; the published checkpoint, and so vLLM, has [E, in, out].
`save_pretrained` writes transformers' layout, which vLLM rejects; so weight transfer and checkpoints both come here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel, ProcessorMixin

from policies.lora import EXPERT_PARAMETERS, adapters, is_adapter, published_name


def exported_parameters(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every parameter as the published checkpoint names and lays it out; only LoRA's sums are copies.

    A tied `lm_head.weight` is left out, as it is from the checkpoint.

    Args:
        model: A Qwen3-VL, dense or MoE, built or loaded, with or without LoRA.

    Yields:
        Name and tensor. Adapters are merged into the parameters that they adapt. The other tensors share the model's
        memory; experts are transposed views: `gate_up_proj` [E, H, 2·I], `down_proj` [E, I, H].
    """
    adapted = adapters(model)
    for name, parameter in _published_parameters(model):
        tensor = parameter.detach()
        if name in adapted:
            tensor = tensor + adapted[name].get_delta_weight("default").detach()
        yield name, _published_layout(name, tensor)


def exported_metadata(model: PreTrainedModel) -> list[tuple[str, torch.dtype, torch.Size]]:
    """Name, dtype and shape of what `exported_parameters` yields, in its order."""
    return [
        (name, parameter.dtype, _published_layout(name, parameter).shape)
        for name, parameter in _published_parameters(model)
    ]


def _published_parameters(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameter in model.named_parameters():  # a tied parameter comes once, under its first name
        if not is_adapter(name):
            yield published_name(name), parameter


def _published_layout(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2) if name.endswith(EXPERT_PARAMETERS) else tensor


def save_policy(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes model and processor as a published folder: `from_pretrained` and vLLM load it.

    A crash leaves half a folder: a caller who cannot have that writes aside and renames.

    Args:
        model: A Qwen3-VL, dense or MoE, built or loaded.
        processor: Its processor (tokenizer and chat template included).
        folder: Where to; made if missing, weights in it are replaced.
        dtype: Precision of the weights on disk. Default: the model's.
        max_shard_bytes: Larger policies are cut into several files with an index.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.dtype
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # FSDP2 renames the class of what it wraps
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = {name: tensor.to("cpu", dtype) for name, tensor in exported_parameters(model)}
    save_torch_state_dict(weights, folder, max_shard_size=max_shard_bytes)
    return folder
