"""The trainable parameters, their optimizer, and its learning-rate schedule."""

from __future__ import annotations

import torch

from policies.frozen import frozen_parameters
from policies.lora import add_lora, published_name
from rl.config import OptimizerConfig, PolicyOptions


def select_trainable(model: torch.nn.Module, options: PolicyOptions) -> None:
    """Selects the trainable parameters: all weights, or LoRA's adapters; without the vision tower if its learning rate is 0.

    Parameters that the checkpoint's config lists in `frozen_parameters` are not trained either.

    Raises:
        ValueError: The model lacks a part that LoRA should adapt.
    """
    if options.lora.rank:
        add_lora(model, rank=options.lora.rank, alpha=options.lora.alpha, parts=options.lora.parts, seed=options.seed)
    if options.optimizer.vision_learning_rate == 0:
        model.model.visual.requires_grad_(False)
    frozen = set(frozen_parameters(model))
    for name, parameter in model.named_parameters():
        if published_name(name) in frozen:
            parameter.requires_grad_(False)


def make_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW. Matrices decay, vectors (norms, biases) do not; the vision tower may have its own learning rate."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".visual." in name, parameter.dim() >= 2), []).append(parameter)
    vision_rate = config.learning_rate if config.vision_learning_rate is None else config.vision_learning_rate
    options = [
        {
            "params": group,
            "lr": vision_rate if is_vision else config.learning_rate,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        # The language model first: the metric `policy/learning_rate` is that of the first group.
        for (is_vision, is_matrix), group in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]
    optimizer = torch.optim.AdamW(options, betas=config.betas, eps=config.eps, fused=True)
    parameters = [parameter for group in groups.values() for parameter in group]
    # AdamW has no state of parameters without a gradient so far, such as the vision tower while all prompts are text. torch's
    # get_optimizer_state_dict then fails on resume, and takes a step itself if the optimizer has no state at all.
    for parameter in parameters:
        moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate rises linearly over `warmup_updates`, and falls linearly to a tenth over `decay_updates` if set."""

    def share(update: int) -> float:
        rise = min(1.0, (update + 1) / max(1, config.warmup_updates))
        fall = max(0.1, 1 - 0.9 * update / config.decay_updates) if config.decay_updates else 1.0
        return min(rise, fall)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
