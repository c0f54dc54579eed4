"""Finds where numbers that are not finite arise: in the weights, in a layer's output, or in a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from policies.dtensor import local_shard
from rl.learner.ranks import gather

UNKNOWN = "no layer alone"
"""The answer where each number is finite, and only their sum is not."""


class WeightsNotFinite(ArithmeticError):
    """A weight of the policy is not finite: nothing after it is, and only an earlier checkpoint helps."""


@torch.no_grad()
def require_finite_weights(model: torch.nn.Module) -> None:
    """Checks all weights. Every rank must call it.

    Raises:
        WeightsNotFinite: On every rank, if a weight of any is not finite; names the first one.
    """
    names, weights = zip(*model.named_parameters(), strict=True)
    first = _first_of_ranks([number for number, weight in enumerate(weights) if not _is_finite(weight)])
    if first is not None:
        raise WeightsNotFinite(f"the weights of {names[first]} are not finite")


@torch.no_grad()
def nonfinite_origin(model: torch.nn.Module, forwards: Sequence[Callable[[], object]]) -> str:
    """Returns the name of what is not finite first: an output of the forward passes, else a gradient.

    Every rank must call it, with as many forward passes as the others.

    Args:
        model: The policy, with the gradients of a backward pass, which nothing has scaled.
        forwards: Runs each microbatch of the update again.

    Raises:
        WeightsNotFinite: The weights are not.
    """
    require_finite_weights(model)
    parameters = list(model.named_parameters())
    names = [name for name, _ in model.named_modules()]
    outputs = [names.index(name) for forward in forwards for name in _nonfinite_outputs(model, forward)[:1]]
    if (first := _first_of_ranks(outputs)) is not None:
        return f"the output of {names[first]}"
    # A backward pass goes from the last parameter to the first.
    last = len(parameters) - 1
    gradients = [last - number for number, (_, weight) in enumerate(parameters) if not _is_finite(weight.grad)]
    if (first := _first_of_ranks(gradients)) is not None:
        return f"the gradient of {parameters[last - first][0]}"
    return UNKNOWN


def _nonfinite_outputs(model: torch.nn.Module, forward: Callable[[], object]) -> list[str]:
    """Runs a forward pass, and returns the modules with an output that is not finite, in the order in which they end."""
    found: list[str] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():

            def look(module: torch.nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if not all(map(_is_finite, _tensors(output))):
                    found.append(name)

            stack.callback(module.register_forward_hook(look).remove)
        forward()
    return found


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))


def _is_finite(tensor: Tensor | None) -> bool:
    """Returns True if this rank's rows are finite; without a tensor too."""
    if tensor is None or not tensor.is_floating_point():
        return True
    rows = local_shard(tensor)[0]
    if not rows.numel():
        return True
    smallest, largest = rows.aminmax()  # both are NaN if any is; one pass, where `isfinite` takes twenty times as long
    return bool(smallest.isfinite() and largest.isfinite())


def _first_of_ranks(numbers: Sequence[int]) -> int | None:
    firsts = [first for first in gather(min(numbers, default=None)) if first is not None]
    return min(firsts, default=None)
