"""LoRA (arXiv 2106.09685) through peft, on selected parts of a policy; merged when weights leave the learner."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import safetensors.torch
import torch
from transformers import PreTrainedModel

from policies.dtensor import full_tensor, local_shard

Part: TypeAlias = Literal["language", "vision", "experts"]

MODULES: dict[Part, str] = {
    "language": r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "vision": r"model\.visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])|(deepstack_)?merger\S*\.linear_fc[12])",
}
"""Part → regular expression for the module names of its linear layers."""
EXPERT_PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def add_lora(model: PreTrainedModel, *, rank: int, alpha: float, parts: Sequence[Part], seed: int) -> None:
    """Freezes the policy and adds trainable low-rank adapters, which start as zero.

    Args:
        model: A Qwen3-VL, dense or MoE; changed in place, with the same class and config.
        rank: Rank of each adapter.
        alpha: An adapter's product is scaled by alpha / rank.
        parts: Parts that get adapters.
        seed: Seeds the adapters' random half.

    Raises:
        ValueError: A part matches nothing in this model.
    """
    from peft import inject_adapter_in_model

    _require_matches(model, parts)
    with torch.random.fork_rng():  # peft draws numbers that the next line replaces
        inject_adapter_in_model(_peft_config(rank, alpha, parts), model)
    initialise_adapters(model, seed)


def _peft_config(rank: int, alpha: float, parts: Sequence[Part]) -> Any:
    from peft import LoraConfig

    patterns = [MODULES[part] for part in parts if part in MODULES]
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(f"({pattern})" for pattern in patterns) or [],
        target_parameters=list(EXPERT_PARAMETERS) if "experts" in parts else None,
    )


def adapter_files(
    model: torch.nn.Module, *, rank: int, alpha: float, parts: Sequence[Part], dtype: torch.dtype = torch.float32
) -> dict[str, bytes]:
    """Returns the adapters alone, as files that peft and vLLM load. Every rank of a sharded policy must call it.

    Args:
        model: A policy with adapters from `add_lora`.
        rank: As in `add_lora`.
        alpha: As in `add_lora`.
        parts: As in `add_lora`.
        dtype: Precision in the file.

    Returns:
        File name → content.
    """
    tensors = {
        "base_model.model." + name.replace(".default", ""): full_tensor(parameter.detach())
        .to("cpu", dtype)
        .contiguous()
        for name, parameter in model.named_parameters()
        if is_adapter(name)
    }
    config = _peft_config(rank, alpha, parts).to_dict()
    return {
        "adapter_config.json": json.dumps(config, indent=1, default=_plain).encode(),
        "adapter_model.safetensors": safetensors.torch.save(tensors, metadata={"format": "pt"}),
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


@torch.no_grad()
def initialise_adapters(model: torch.nn.Module, seed: int) -> None:
    """Initialises A as Kaiming-uniform, as peft does, and B as zero; equal on any device and any number of ranks.

    Args:
        model: A policy with adapters. Sharded adapters take their rows; adapters on the meta device are skipped.
        seed: Seeds the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_adapter(name) and not parameter.is_meta:
            values = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
            local, first = local_shard(parameter)
            local.copy_(values[first : first + len(local)])


def _require_matches(model: PreTrainedModel, parts: Sequence[Part]) -> None:
    modules = [name for name, _ in model.named_modules()]
    matching: dict[str, bool] = {
        part: any(re.fullmatch(pattern, name) for name in modules) for part, pattern in MODULES.items()
    }
    matching["experts"] = any(name.endswith(EXPERT_PARAMETERS) for name, _ in model.named_parameters())
    for part in parts:
        if not matching.get(part):
            available = ", ".join(name for name in get_args(Part) if matching[name])
            raise ValueError(
                f"lora.parts: {part!r} matches nothing in a {type(model).__name__}; it has {available or 'no known parts'}"
            )


def adapters(model: torch.nn.Module) -> dict[str, Any]:
    """Returns published parameter name → adapter."""
    found = {}
    for path, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            # An adapter of a bare parameter has its name; the others wrap a linear layer.
            leaf = getattr(module, "parameter_name", "weight")
            found[f"{published_name(path)}.{leaf}"] = module
    return found


@torch.no_grad()
def adapter_product(adapter: Any) -> torch.Tensor:
    """Returns the full product that an adapter adds to its parameter. Every rank of a sharded policy must call it."""
    halves = [adapter.lora_A["default"], adapter.lora_B["default"]]
    sharded = [half.weight for half in halves]
    try:
        for half in halves:  # gathered, since peft splits them by experts, which need not match the rows
            half.weight = torch.nn.Parameter(full_tensor(half.weight), requires_grad=False)
        return adapter.get_delta_weight("default")
    finally:
        for half, weight in zip(halves, sharded, strict=True):
            half.weight = weight


def published_name(name: str) -> str:
    """Returns a parameter's or module's name without peft's wrappers."""
    return name.replace(".base_layer", "")


def is_adapter(name: str) -> bool:
    """Returns True for a parameter of an adapter, which the published checkpoint lacks."""
    return ".lora_" in name


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Disables the adapters inside the block: the policy is the one before LoRA."""
    layers, learning = list(adapters(model).values()), [each for each in model.parameters() if each.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    # peft freezes them, too. FSDP2 notes at its first forward pass, once for all, which parameters get gradients.
    for parameter in learning:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
