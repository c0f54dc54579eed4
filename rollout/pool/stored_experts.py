"""Experts that stay in the object store of their engine's node: the driver holds references, the learner's ranks fetch their own.

The experts of a response are one object: those of the prompt, if the response has them, and then its own. As a result of the
driver's call the driver owns it. So it outlives the engine, and is lost only with the node. Ray sends results of less than 100 KB
to the driver at once, where they stay pickled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from rollout.types import Experts, Response

if TYPE_CHECKING:
    import ray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredExperts:
    """Consecutive rows of a stored array."""

    ref: ray.ObjectRef | None
    """The array; None on the way from the engine, which does not know the reference."""
    shape: tuple[int, ...]
    """[rows, layers, top_k]."""
    dtype: np.dtype
    """As in `Experts`."""
    start: int = 0
    """Place of the first row in the stored array."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> StoredExperts:
        start, stop, _ = rows.indices(len(self))
        return replace(self, start=self.start + start, shape=(max(stop - start, 0), *self.shape[1:]))

    def fetch(self) -> np.ndarray | None:
        """Returns the rows, read-only; None if they are lost."""
        import ray  # imported late: episodes join experts and need no Ray

        try:
            array = ray.get(self.ref)
        except ray.exceptions.ObjectLostError:
            return None
        return array[self.start : self.start + len(self)]


def has_experts(reply: object) -> TypeGuard[Response]:
    """Returns True for a response with experts, stored or not."""
    return isinstance(reply, Response) and reply.completion.routed_experts is not None


def take_experts(response: Response) -> tuple[Response, np.ndarray]:
    """Separates a response that has experts from the array to store."""
    prompt, own = response.prompt_routed_experts, response.completion.routed_experts
    assert isinstance(own, np.ndarray)
    array = own if prompt is None else np.concatenate([prompt, own])
    stored = StoredExperts(ref=None, shape=array.shape, dtype=array.dtype)
    num_prompt = len(array) - len(own)
    return _with_experts(response, None if prompt is None else stored[:num_prompt], stored[num_prompt:]), array


def with_reference(response: Response, ref: ray.ObjectRef) -> Response:
    """Returns a response of `take_experts` with the reference to its array."""
    prompt, own = response.prompt_routed_experts, response.completion.routed_experts
    assert not isinstance(prompt, np.ndarray) and isinstance(own, StoredExperts)
    return _with_experts(response, None if prompt is None else replace(prompt, ref=ref), replace(own, ref=ref))


def join_experts(before: Experts, after: Experts) -> Experts:
    """Returns the experts that a response has for its prompt, and those after them, as one."""
    if isinstance(before, StoredExperts):
        return replace(before, shape=(len(before) + len(after), *before.shape[1:]))
    return np.concatenate([before, after])


def _with_experts(response: Response, prompt: Experts | None, own: Experts) -> Response:
    completion = replace(response.completion, routed_experts=own)
    return replace(response, completion=completion, prompt_routed_experts=prompt)
