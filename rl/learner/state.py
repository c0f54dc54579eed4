"""Trainer state of a checkpoint: optimizer, schedule, random generators, adapters. Each rank writes its own rows.

A rank's file is `trainer/rank_N.safetensors`. It has the first row of each tensor, so any number of ranks reads it.
No object is pickled: a file that somebody else has written executes nothing.
"""

from __future__ import annotations

import json
import platform
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, ProcessorMixin

from policies.dtensor import local_shard
from policies.export import describe_policy, policy_files
from policies.host_copies import HostCopies
from policies.lora import is_adapter
from policies.weight_files import TensorFile
from rl.learner.nonfinite import require_finite_weights
from rl.learner.ranks import gather, num_ranks, this_rank
from rl.run_dir.files import reading
from rl.run_dir.parts import write_in_background, write_part

FOLDER = "trainer"
MARGIN = 1.2
"""Free memory that a copy needs, relative to its size."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state of a parameter."""


def save_part(
    folder: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    copies: HostCopies | None,
) -> None:
    """Writes this rank's part of a checkpoint, weights and trainer state; see `rl.run_dir.parts`. Every rank must call it.

    Args:
        folder: The checkpoint's folder.
        model: The policy.
        processor: Its processor.
        optimizer: Its optimizer.
        scheduler: The schedule of the learning rate.
        copies: Where all tensors are copied to, to return and write them in a thread. None, or no room for the copies: they are
            written at once.

    Raises:
        WeightsNotFinite: The weights are not: such a checkpoint would replace a good one.
    """
    require_finite_weights(model)
    if copies is not None:
        copies.begin()
        copies = copies if copy_fits(model, optimizer, copies) else None
    state = (trainer_file(model, optimizer, scheduler, copies) for _ in range(1))  # made after the weights
    files = chain(policy_files(model, copies=copies), state)
    describe = partial(describe_policy, model, processor) if this_rank() == 0 else None
    if copies is None:
        write_part(folder, this_rank(), describe, files)
    else:
        copies.read_by(write_in_background(folder, this_rank(), describe, files))


def trainer_file(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    copies: HostCopies | None = None,
) -> TensorFile:
    """Returns this rank's file.

    Args:
        model: The policy.
        optimizer: Its optimizer.
        scheduler: The schedule of the learning rate.
        copies: As in `save_part`.
    """
    tensors, first_rows = {}, {}
    for name, tensor in _state(model, optimizer):
        rows, first = local_shard(tensor)
        if _writes(tensor) and rows.numel():
            tensors[name] = copies.copy(name, rows) if copies else rows.to("cpu").contiguous()
            first_rows[name] = first
    numbers, generators = _rng_state()
    described = {"first_rows": first_rows, "updates": scheduler.last_epoch, "rng": numbers}
    return TensorFile(
        name=f"{FOLDER}/rank_{this_rank()}.safetensors",
        tensors=tensors | generators,
        metadata={"trainer": json.dumps(described)},  # one entry: safetensors writes several in any order
    )


def copy_fits(model: torch.nn.Module, optimizer: torch.optim.Optimizer, copies: HostCopies) -> bool:
    """Returns True if each node's free memory holds what its ranks have still to copy. All ranks get the same answer."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / num_ranks()
    states = sum(local_shard(tensor)[0].nbytes for _, tensor in _state(model, optimizer))
    ranks = gather((platform.node(), max(0.0, weights + states - copies.nbytes), available_bytes()))
    needed = Counter[str]()
    for node, num_bytes, _ in ranks:
        needed[node] += num_bytes
    return all(MARGIN * needed[node] <= available for node, _, available in ranks)


def available_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the memory that this process may still take: of the machine, and of the container's limit (cgroup v2).

    Args:
        cgroup: Folder of the container's limits.
    """
    free = psutil.virtual_memory().available
    try:
        limit, used = ((cgroup / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def load_trainer(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
) -> None:
    """Restores the trainer state of a checkpoint in place.

    The learning rates are those of the optimizer's own schedule, at the update that the checkpoint has reached: a rollback lowers
    them.

    Args:
        folder: The checkpoint.
        model: The policy, on any number of ranks.
        optimizer: Its optimizer.
        scheduler: The schedule of the learning rate.

    Raises:
        ValueError: The checkpoint lacks rows of a tensor, has it with another shape, or cannot be read.
    """
    with reading(folder / FOLDER), ExitStack() as stack:
        ranks = _Files(folder / FOLDER, stack)
        for name, tensor in _state(model, optimizer):
            ranks.fill(name, *local_shard(tensor))
        described, generators = ranks.described[ranks.own], ranks.generators()
        scheduler.last_epoch = described["updates"]
        scheduler._step_count = scheduler.last_epoch + 1
        for group, rate, share in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = rate * share(scheduler.last_epoch)
        _set_rng_state(described["rng"], generators)


class _Files:
    """The files of all ranks that have written a checkpoint, open until the stack closes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        paths = sorted(folder.glob("rank_*.safetensors"), key=lambda path: int(path.stem.removeprefix("rank_")))
        if not paths:
            raise ValueError(
                f"{folder}: no rank_N.safetensors there: the trainer state is missing or of an older version"
            )
        self.folder = folder
        self.files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        self.described = [json.loads(file.metadata()["trainer"]) for file in self.files]
        self.own = min(this_rank(), len(self.files) - 1)
        """Number of the file with this rank's random generators: its own one or the last."""
        self._parts: dict[str, list[tuple[int, Any]]] = {}
        for file, described in zip(self.files, self.described, strict=True):
            for name, first in described["first_rows"].items():
                self._parts.setdefault(name, []).append((first, file))

    def fill(self, name: str, rows: Tensor, first: int) -> None:
        """Fills a tensor with its rows from `first` on."""
        if name not in self._parts:
            raise ValueError(f"{self.folder} has no {name}: it is of another policy, or of other trainable parameters")
        if not rows.dim():
            rows.copy_(self._parts[name][0][1].get_tensor(name))
            return
        filled = 0
        for start, file in self._parts[name]:
            part = file.get_slice(name)
            length, *shape = part.get_shape()
            if shape != list(rows.shape[1:]):
                raise ValueError(f"{self.folder}: {name} has rows of {shape}, the policy's have {list(rows.shape[1:])}")
            begin, end = max(first, start), min(first + len(rows), start + length)
            if begin < end:
                rows[begin - first : end - first].copy_(part[begin - start : end - start])
                filled += end - begin
        if filled != len(rows):
            raise ValueError(f"{self.folder} has {filled} of {len(rows)} rows of {name} from row {first} on")

    def generators(self) -> dict[str, Tensor]:
        """The states of torch's random generators."""
        file = self.files[self.own]
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith("rng/")}  # noqa: SIM118


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of the state: AdamW's moments, and adapters, which no other file has."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for moment in MOMENTS:
                yield f"{moment}/{name}", optimizer.state[parameter][moment]
        if is_adapter(name):
            yield f"adapter/{name}", parameter.detach()


def _writes(tensor: Tensor) -> bool:
    """Returns True if this rank writes its rows: of several replicas the first one does."""
    if not isinstance(tensor, DTensor):
        return this_rank() == 0
    mesh = tensor.device_mesh
    places = zip(tensor.placements, mesh.get_coordinate() or (), strict=True)
    return all(placement.is_shard() or place == 0 for placement, place in places)


def _rng_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the states of this process's random generators: Python's and NumPy's; torch's on CPU and GPUs."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    generators = {f"rng/cuda_{number}": state for number, state in enumerate(on_gpus)}
    numbers = {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]}
    return numbers, {"rng/torch": torch.get_rng_state(), **generators}


def _set_rng_state(numbers: dict[str, Any], generators: dict[str, Tensor]) -> None:
    """Restores the states that `_rng_state` returned."""
    version, state, gauss = numbers["python"]
    random.setstate((version, tuple(state), gauss))
    np.random.set_state(tuple(numbers["numpy"]))
    torch.set_rng_state(generators["rng/torch"])
    if on_gpus := [generators[f"rng/cuda_{number}"] for number in range(len(generators) - 1)]:
        torch.cuda.set_rng_state_all(on_gpus)
