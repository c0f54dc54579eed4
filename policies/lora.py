"""LoRA (arXiv 2106.09685) through peft, on parts of a policy that are chosen by name; merged whenever weights leave the learner."""

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
"""Linear layers of each part, as regular expressions over module names."""
EXPERT_PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def add_lora(model: PreTrainedModel, *, rank: int, alpha: float, parts: Sequence[Part], seed: int) -> None:
    """Freezes the policy and adds trainable low-rank adapters, which change nothing yet.

    Args:
        model: A Qwen3-VL, dense or MoE; changed in place, its class and config stay.
        rank: Of each adapter.
        alpha: An adapter's product is scaled by alpha / rank.
        parts: Which parts get adapters.
        seed: Of the adapters' random half.

    Raises:
        ValueError: If a part matches nothing in this model.
    """
    from peft import inject_adapter_in_model

    _require_matches(model, parts)
    with torch.random.fork_rng():  # peft draws numbers, which the next line replaces
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
    """The adapters alone, as the files that peft and vLLM load; of a sharded policy every rank calls this.

    Args:
        model: With the adapters that `add_lora` added.
        rank: As `add_lora` was told.
        alpha: As `add_lora` was told.
        parts: As `add_lora` was told.
        dtype: Precision in the file.

    Returns:
        Content by file name.
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
    """Kaiming-uniform A, as peft draws it, and zero B; the same numbers on any device and any number of ranks.

    Args:
        model: With adapters; sharded ones take their rows, those without memory stay as they are.
        seed: Of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_adapter(name) and not parameter.is_meta:
            whole = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
            local, first = local_shard(parameter)
            local.copy_(whole[first : first + len(local)])


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
    """The adapter of each adapted parameter, under the parameter's name in the published checkpoint."""
    found = {}
    for path, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            # An adapter of a bare parameter says which one; the others wrap a linear layer.
            leaf = getattr(module, "parameter_name", "weight")
            found[f"{published_name(path)}.{leaf}"] = module
    return found


@torch.no_grad()
def adapter_product(adapter: Any) -> torch.Tensor:
    """What an adapter of `adapters` adds to its parameter, in whole; of a sharded policy every rank calls this."""
    halves = [adapter.lora_A["default"], adapter.lora_B["default"]]
    own = [half.weight for half in halves]
    try:
        for half in halves:  # peft cuts them by experts, which rows need not follow
            half.weight = torch.nn.Parameter(full_tensor(half.weight), requires_grad=False)
        return adapter.get_delta_weight("default")
    finally:
        for half, weight in zip(halves, own, strict=True):
            half.weight = weight


def published_name(name: str) -> str:
    """A parameter's or module's name without the wrappers that peft puts around it."""
    return name.replace(".base_layer", "")


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter and not to the published checkpoint."""
    return ".lora_" in name


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the policy is the one that LoRA started from."""
    layers = list(adapters(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
