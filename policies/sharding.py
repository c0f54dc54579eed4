"""FSDP2 sharding of a policy by rows of its parameters; each rank reads its rows from disk, so no rank holds the whole policy.

`fully_shard` splits every parameter along its first axis. A layer is gathered before it runs, and freed afterwards. HSDP is the
same with several replicas of the policy: each is sharded over its own ranks, and gradients are averaged over replicas, too.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from policies.dtensor import local_shard
from policies.export import published_layout, published_parameters
from policies.loading import model_folder, refuse_square_experts, supported_model
from policies.lora import initialise_adapters
from policies.response_logprobs import ResponseLogprobs
from policies.weight_files import open_weights


def empty_policy(path_or_name: Path | str) -> PreTrainedModel:
    """Returns a Qwen3-VL, dense or MoE, as `load_policy` does, but with float32 parameters on the meta device.

    Raises:
        ValueError: There is no such model, or it is of another family.
    """
    name = supported_model(path_or_name)
    config = AutoConfig.from_pretrained(name)
    refuse_square_experts(name, config.text_config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.tie_weights()
    return model


def shard_policy(policy: ResponseLogprobs, mesh: DeviceMesh, *, dtype: torch.dtype, offload: bool = False) -> None:
    """Shards a policy over the ranks of a mesh, in place; its parameters may still be on the meta device.

    Args:
        policy: The policy, prepared equally on every rank: adapters added, frozen parameters frozen.
        mesh: The ranks: [ranks], or for HSDP [replicas, ranks of each].
        dtype: Precision of forward and backward passes; gradients are reduced in float32.
        offload: Keeps parameters, gradients and optimizer state in host memory.
    """
    language, vision = policy.model.model.language_model, policy.model.model.visual
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    storage = CPUOffloadPolicy() if offload else OffloadPolicy()
    for module in (*language.layers, *vision.blocks, policy):
        # The root frees its parameters after a forward pass, too. A pass without gradient would otherwise leave them gathered,
        # and outdated after the next update.
        fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=storage, reshard_after_forward=True)


def fill_policy(
    model: PreTrainedModel, path_or_name: Path | str, *, device: torch.device, offload: bool = False, seed: int = 0
) -> None:
    """Allocates a sharded policy from `empty_policy`, and reads each rank's rows of the published weights.

    Args:
        model: From `empty_policy`, sharded, with or without adapters.
        path_or_name: The folder or hub name to read from.
        device: Device of the forward passes.
        offload: As in `shard_policy`.
        seed: Seeds new adapters.

    Raises:
        ValueError: Weights are missing or have another shape.
    """
    buffers = dict(model.named_buffers())
    model.to_empty(device="cpu" if offload else device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.tie_weights()
    initialise_adapters(model, seed)
    with ExitStack() as stack, torch.no_grad():
        weights = open_weights(model_folder(str(path_or_name)), stack)
        for name, parameter in published_parameters(model):
            if name not in weights:
                raise ValueError(f"model '{path_or_name}' lacks the weight {name}: pass a complete checkpoint")
            published = weights[name].get_slice(name)
            expected = list(published_layout(name, torch.empty(parameter.shape, device="meta")).shape)
            if published.get_shape() != expected:
                raise ValueError(
                    f"model '{path_or_name}': the weight {name} is {published.get_shape()}, but config.json requires {expected}"
                )
            local, first = local_shard(parameter)
            if len(local):
                local.copy_(published_layout(name, published[first : first + len(local)]))
