"""Loads policies: the one that is trained, and the frozen reference. In a process group each rank holds a shard by FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from policies.frozen import halve_frozen
from policies.loading import load_policy
from policies.response_logprobs import ResponseLogprobs
from policies.sharding import empty_policy, fill_policy, shard_policy
from rl.config import LearningOptions
from rl.learner.optimizer import select_trainable


def load_trainable(
    options: LearningOptions, model_path: str | Path, device: torch.device, mesh: DeviceMesh | None
) -> ResponseLogprobs:
    """Loads the policy that is trained.

    Args:
        options: The learner's options.
        model_path: The checkpoint to resume, or `options.model`.
        device: The device of this rank.
        mesh: The ranks that share the policy; None for one process that has all of it.

    Raises:
        ValueError: There is no such policy, or it lacks a part that LoRA should adapt.
    """

    def prepare(model: PreTrainedModel) -> None:
        select_trainable(model, options)
        if options.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()  # transformers requires it; Qwen3-VL has no dropout

    # With LoRA a checkpoint's merged weights are for inference; the learner keeps base weights and adapters apart.
    return _load(options, options.model if options.lora.rank else model_path, device, mesh, prepare)


def load_reference(options: LearningOptions, device: torch.device, mesh: DeviceMesh | None) -> ResponseLogprobs:
    """Loads the frozen policy of the KL penalty: the one that the run started from, on resume too."""
    return _load(options, options.model, device, mesh, lambda model: model.requires_grad_(False))


def _load(
    options: LearningOptions,
    model_path: str | Path,
    device: torch.device,
    mesh: DeviceMesh | None,
    prepare: Callable[[PreTrainedModel], object],
) -> ResponseLogprobs:
    """Loads the whole policy or this rank's shard, in float32; LoRA's base as `halve_frozen` says. `prepare` runs before that."""
    learner = options.learner
    dtype: torch.dtype = getattr(torch, learner.dtype)
    make = partial(
        ResponseLogprobs,
        temperature=options.rollout.temperature,
        packed=learner.packing,
        fused=device.type == "cuda",
    )
    halves = bool(options.lora.rank) and dtype == torch.bfloat16
    if mesh is None:
        model = load_policy(model_path, dtype=torch.float32, device=device)
        prepare(model)
        if halves:
            halve_frozen(model, model_path)
        return make(model, autocast=None if dtype == torch.float32 else dtype)
    model = empty_policy(model_path)
    prepare(model)
    if halves:
        halve_frozen(model, model_path)
    policy = make(model)
    shard_policy(policy, mesh, dtype=dtype, offload=learner.offload)
    fill_policy(model, model_path, device=device, offload=learner.offload, seed=options.seed)
    return policy
