"""The policy's parameters under the names and layouts of the published checkpoint, for vLLM and for the disk.

transformers keeps the experts of a MoE layer as [E, out, in]; the published checkpoint, and so vLLM, has [E, in, out].
`save_pretrained` writes transformers' layout, which vLLM rejects; so weight transfer and checkpoints both come here.
A sharded policy is gathered one parameter at a time: every rank goes through the same parameters, in the same order.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, ProcessorMixin

from policies.dtensor import full_tensor
from policies.lora import EXPERT_PARAMETERS, adapter_product, adapters, is_adapter, published_name


def exported_parameters(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every parameter as the published checkpoint names and lays it out.

    A tied `lm_head.weight` is left out, as it is from the checkpoint.

    Args:
        model: A Qwen3-VL, dense or MoE, built or loaded, with or without LoRA, sharded or not.
        dtype: What shards are cast to on their way, to halve it; the caller casts what is whole already. Default: not at all.

    Yields:
        Name and tensor. Adapters are merged into the parameters that they adapt. Tensors share the model's memory except
        for LoRA's sums and what was gathered; experts are transposed views: `gate_up_proj` [E, H, 2·I], `down_proj`
        [E, I, H].
    """
    adapted = adapters(model)
    for name, parameter in published_parameters(model):
        tensor = parameter.detach()
        if name in adapted:
            tensor = full_tensor(tensor) + adapter_product(adapted[name])
        elif isinstance(tensor, DTensor):
            tensor = full_tensor(tensor.to(dtype or tensor.dtype))
        yield name, published_layout(name, tensor)


def exported_metadata(model: PreTrainedModel) -> list[tuple[str, torch.dtype, torch.Size]]:
    """Name, dtype and shape of what `exported_parameters` yields, in its order."""
    return [
        (name, parameter.dtype, published_layout(name, torch.empty(parameter.shape, device="meta")).shape)
        for name, parameter in published_parameters(model)
    ]


def published_parameters(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every parameter but the adapters', under its published name, in the layout that transformers has in memory."""
    for name, parameter in model.named_parameters():  # a tied parameter comes once, under its first name
        if not is_adapter(name):
            yield published_name(name), parameter


def published_layout(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Between the layout in memory and the published one, either way: experts are transposed."""
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

    Of a sharded policy every rank calls this, and rank 0 writes. No more than a file or two of it is in memory at a time.
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
    writes = not dist.is_initialized() or dist.get_rank() == 0
    dtype = dtype or model.dtype
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        for part in (config, config.text_config, config.vision_config):
            part.dtype = dtype
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        processor.save_pretrained(folder)
        for old in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
            old.unlink()
    shapes = {name: torch.empty(shape, dtype=dtype, device="meta") for name, _, shape in exported_metadata(model)}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=max_shard_bytes)
    unwritten: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in exported_parameters(model, dtype):
        if not writes:
            continue
        file = split.tensor_to_filename[name]
        weights = unwritten.setdefault(file, {})
        weights[name] = tensor.to("cpu", dtype).contiguous()
        if len(weights) == len(split.filename_to_tensors[file]):
            save_file(unwritten.pop(file), folder / file, metadata={"format": "pt"})
    if writes and split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFETENSORS_INDEX_FILE).write_text(json.dumps(index, indent=2))
    return folder
