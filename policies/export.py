"""Export of the policy's parameters with the names and layouts of the published checkpoint, for vLLM and for the disk.

transformers keeps the experts of a MoE layer as [E, out, in]; the published checkpoint, and so vLLM, has [E, in, out].
`save_pretrained` writes transformers' layout, which vLLM rejects. So weight transfer and checkpoints both use this module.
A sharded policy is gathered one parameter at a time: every rank iterates over the same parameters in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, ProcessorMixin

from policies.dtensor import full_tensor
from policies.host_copies import HostCopies
from policies.lora import EXPERT_PARAMETERS, adapter_product, adapters, is_adapter, published_name
from policies.weight_files import TensorFile, write_files

MAX_SHARD_BYTES = 2 * 10**9
"""Largest file of weights."""


def exported_parameters(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every parameter with the name and layout of the published checkpoint.

    A tied `lm_head.weight` is left out, as in the checkpoint.

    Args:
        model: A Qwen3-VL, dense or MoE, built or loaded, with or without LoRA, sharded or not.
        dtype: Precision that shards are cast to before they are gathered, to halve the traffic. Unsharded parameters are left to
            the caller. Default: no cast.

    Yields:
        Name and tensor. Adapters are merged into the parameters that they adapt. Tensors share the model's memory, except LoRA's
        sums and gathered parameters. Experts are transposed views: `gate_up_proj` [E, H, 2·I], `down_proj` [E, I, H].
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
    """Returns name, dtype and shape of every tensor of `exported_parameters`, in the same order."""
    adapted = adapters(model)
    return [
        (
            name,
            torch.promote_types(parameter.dtype, torch.float32) if name in adapted else parameter.dtype,
            published_layout(name, torch.empty(parameter.shape, device="meta")).shape,
        )
        for name, parameter in published_parameters(model)
    ]


def published_parameters(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yields every parameter except adapters, with its published name, in transformers' layout."""
    for name, parameter in model.named_parameters():  # a tied parameter comes once, with its first name
        if not is_adapter(name):
            yield published_name(name), parameter


def published_layout(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Converts between transformers' layout and the published one, in either direction: transposes experts."""
    return tensor.transpose(1, 2) if name.endswith(EXPERT_PARAMETERS) else tensor


def save_policy(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes model and processor as a published folder, which `from_pretrained` and vLLM load.

    Every rank of a sharded policy must call it. Parameters are gathered one at a time, and the ranks write the files in turn, each
    in the background: no rank has more than two files in memory. A crash leaves an incomplete folder: to avoid that, write to a
    temporary folder and rename it.

    Args:
        model: A Qwen3-VL, dense or MoE, built or loaded.
        processor: The model's processor, with tokenizer and chat template.
        folder: The target folder; created if missing. Its weights are replaced.
        dtype: Precision of the weights on disk. Default: the model's.
        max_shard_bytes: Largest file; larger policies get several files with an index.

    Returns:
        The folder.
    """
    folder, dtype = Path(folder), dtype or model.dtype
    if not dist.is_initialized() or dist.get_rank() == 0:
        for old in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
            old.unlink()
        describe_policy(model, processor, folder, dtype=dtype, max_shard_bytes=max_shard_bytes)
    if dist.is_initialized():
        dist.barrier()  # files of an older policy are gone
    write_files(policy_files(model, dtype=dtype, max_shard_bytes=max_shard_bytes), folder)
    return folder


def policy_files(
    model: PreTrainedModel,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    copies: HostCopies | None = None,
) -> Iterator[TensorFile]:
    """Yields this rank's files of the published weights; the ranks take them in turn. Every rank must iterate to the end.

    Args:
        model: A Qwen3-VL, dense or MoE.
        dtype: Precision of the weights on disk. Default: the model's.
        max_shard_bytes: Largest file.
        copies: Where the weights are copied to, so that later updates leave them as they are. None: those in host memory share the
            model's.
    """
    dtype = dtype or model.dtype
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    split = _split(model, dtype, max_shard_bytes)
    ours = list(split.filename_to_tensors)[rank::num_ranks]
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in exported_parameters(model, dtype):
        file = split.tensor_to_filename[name]
        if file not in ours:
            continue
        weights = parts.setdefault(file, {})
        weights[name] = copies.copy(name, tensor, dtype) if copies else tensor.to("cpu", dtype).contiguous()
        if len(weights) == len(split.filename_to_tensors[file]):
            yield TensorFile(name=file, tensors=parts.pop(file))


def describe_policy(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes all of a published folder but the weights; one rank does."""
    folder.mkdir(parents=True, exist_ok=True)
    config, dtype = deepcopy(model.config), dtype or model.dtype
    config.architectures = [type(model).__name__]
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    split = _split(model, dtype, max_shard_bytes)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFETENSORS_INDEX_FILE).write_text(json.dumps(index, indent=2))


def _split(model: PreTrainedModel, dtype: torch.dtype, max_shard_bytes: int) -> StateDictSplit:
    """Assigns weights to files."""
    shapes = {name: torch.empty(shape, dtype=dtype, device="meta") for name, _, shape in exported_metadata(model)}
    return split_torch_state_dict_into_shards(shapes, max_shard_size=max_shard_bytes)
