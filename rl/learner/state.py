"""Trainer state of a checkpoint: optimizer, schedule, random generators, adapters. Each rank writes and reads its own shard."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from policies.lora import is_adapter


def save_trainer(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Writes the trainer state into `folder`."""
    dcp.save(_state(model, optimizer, scheduler), checkpoint_id=str(folder), no_dist=not dist.is_initialized())


def load_trainer(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
) -> None:
    """Restores the trainer state that `save_trainer` wrote; adapters are filled in place.

    The learning rates stay those of the schedule, at the update that the checkpoint has reached: a rollback lowers them.
    """
    rates = list(scheduler.base_lrs)
    state = _state(model, optimizer, scheduler)
    dcp.load(state, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    set_rng_state(state["rng"])
    scheduler.base_lrs = rates
    for group, rate, share in zip(optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
        group |= {"initial_lr": rate, "lr": rate * share(scheduler.last_epoch)}


def _state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
) -> dict[str, Any]:
    return {
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "scheduler": scheduler.state_dict(),
        "rng": get_rng_state(),
        "adapters": {n: p.detach() for n, p in model.named_parameters() if is_adapter(n)},
    }


def get_rng_state() -> dict[str, Any]:
    """The states of this process's random generators: Python's, NumPy's, torch's on CPU and GPUs."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores the states that `get_rng_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
