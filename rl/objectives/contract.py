"""The contract of an objective: its arguments, its result, and a trial before the start.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Objective: TypeAlias = Callable[..., tuple[Tensor, dict[str, Tensor]]]
COUNTS = ("num_sequences", "num_tokens")


def check_objective(objective: Objective, *, by_token: bool = False) -> None:
    """Calls an objective on a small batch, to find mistakes before anything costly starts.

    Args:
        objective: The objective.
        by_token: Passes advantages [B, T], as with a teacher.

    Raises:
        ValueError: It raises, returns no loss with a gradient, or does not take the counts of the whole minibatch. Without the
            counts, the update would depend on the split into microbatches.
    """
    name = getattr(getattr(objective, "func", objective), "__name__", repr(objective))
    counts = accepted(objective, dict.fromkeys(COUNTS, 2))
    if not counts:
        raise ValueError(
            f"objective {name!r} takes neither {' nor '.join(COUNTS)}: it could not be split into microbatches"
        )
    logprobs_BT = torch.full((2, 3), -1.0, requires_grad=True)
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    advantages = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]) if by_token else torch.tensor([1.0, -1.0])
    try:
        loss, metrics = objective(logprobs_BT, torch.full((2, 3), -1.1), advantages, mask_BT, **counts)
        (gradient_BT,) = torch.autograd.grad(loss, logprobs_BT)
        for value in metrics.values():
            float(value)
    except Exception as error:
        kind = ", with an advantage for each token, as with a teacher" if by_token else ""
        raise ValueError(
            f"objective {name!r} failed on a trial batch{kind}: {type(error).__name__}: {error}"
        ) from error
    if not (gradient_BT.isfinite().all() and not gradient_BT[~mask_BT].any() and loss.isfinite()):
        raise ValueError(
            f"objective {name!r} gave loss {loss.item():g} and gradient {gradient_BT.tolist()} on a trial batch: both must be "
            "finite, and the gradient 0 outside the mask"
        )


def accepted(objective: Objective, available: Mapping[str, object]) -> dict[str, object]:
    """Returns the available keyword arguments that an objective takes; all of them if it has `**kwargs`."""
    parameters = inspect.signature(objective).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(available)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in available.items() if name in names}
