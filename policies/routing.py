"""Mixture of experts: which experts each token went to, recorded in one forward pass and replayed in others.

A stale minibatch is trained on weights that would send some tokens to other experts than the old policy did; the ratio then
compares two different networks. Replaying the old policy's choice (R2, or R3 where the engine's choice is replayed;
arXiv 2512.01374) removes that jump. Only the *choice* is replayed: the weights of the chosen experts are computed from the
router's present logits, so the router still learns.

Shapes: S sequences, E experts, K MoE layers, N tokens of a batch as the model sees them (B·L in row order, or packed), k experts
per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

UNKNOWN = -1
"""In place of an expert's number: let the router choose."""


class RoutingReplay:
    """Hooks on every router of a model: record its choices, or replace them.

    Args:
        model: A policy; one without routers has nothing to record.
    """

    def __init__(self, model: nn.Module) -> None:
        self.routers = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
        self._recorded: list[Tensor | None] | None = None
        self._given_KNk: Tensor | None = None
        self._watched: list[tuple[Tensor, Tensor]] | None = None
        self._agreeing, self._compared = 0, 0
        for layer, router in enumerate(self.routers):
            router.register_forward_hook(partial(self._after_router, layer))

    @contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """Collects the choices of the one forward pass inside.

        Yields:
            A list that holds, after the block, one tensor [K, N, k] int16; it stays empty without routers.
        """
        found: list[Tensor] = []
        self._recorded = [None] * len(self.routers)
        try:
            yield found
            if self.routers:
                found.append(torch.stack([choice for choice in self._recorded if choice is not None]))
        finally:
            self._recorded = None

    @contextmanager
    def replay(self, experts_KNk: Tensor | None) -> Iterator[None]:
        """Every forward pass inside takes these experts, as does the second forward of gradient checkpointing.

        So `backward` belongs inside, too.

        Args:
            experts_KNk: As `record` gives them; a token of which any is UNKNOWN is routed afresh. None replays nothing.

        Raises:
            ValueError: If the shape is not that of this model, or all experts are number 0, which no router chooses.
        """
        if experts_KNk is not None:
            self._check(experts_KNk)
        self._given_KNk = experts_KNk
        try:
            yield
        finally:
            self._given_KNk = None

    @contextmanager
    def watch(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Collects, for `balance_loss`, what the routers of the one forward pass inside make of its tokens.

        Yields:
            A list that holds, after the block, the logits [N, E], with their graph, and the chosen experts [N, k] of each layer.
        """
        self._watched = []
        try:
            yield self._watched
        finally:
            self._watched = None

    def take_agreement(self) -> tuple[int, int]:
        """Of how many (token, layer) the router would have made the replayed choice, and out of how many, since the last call."""
        counts = (self._agreeing, self._compared)
        self._agreeing, self._compared = 0, 0
        return counts

    def _check(self, experts_KNk: Tensor) -> None:
        top_k = self.routers[0].top_k if self.routers else 0
        num_layers, _, width = experts_KNk.shape
        if (num_layers, width) != (len(self.routers), top_k):
            raise ValueError(
                f"recorded experts are [layers, tokens, experts per token] = {list(experts_KNk.shape)}, but the model has "
                f"{len(self.routers)} routers that choose {top_k} experts"
            )
        if top_k > 1 and not experts_KNk.any():
            raise ValueError(
                "every recorded expert is number 0: the engine did not capture its routing; use routing_replay R2"
            )

    def _after_router(self, layer: int, router: nn.Module, _args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        logits_NE, _, own_Nk = output
        if self._recorded is not None:
            self._recorded[layer] = own_Nk.to(torch.int16)
        if self._given_KNk is None:
            self._watch(logits_NE, own_Nk)
            return None
        given_Nk = self._given_KNk[layer].to(own_Nk.device, own_Nk.dtype)
        known_N1 = (given_Nk != UNKNOWN).all(1, keepdim=True)
        chosen_Nk = torch.where(known_N1, given_Nk, own_Nk)
        self._compare(own_Nk, given_Nk, known_N1)
        self._watch(logits_NE, chosen_Nk)
        weights_Nk = logits_NE.softmax(-1, dtype=torch.float32).gather(1, chosen_Nk)
        weights_Nk = weights_Nk / weights_Nk.sum(1, keepdim=True)
        return logits_NE, weights_Nk.to(logits_NE.dtype), chosen_Nk

    def _watch(self, logits_NE: Tensor, chosen_Nk: Tensor) -> None:
        if self._watched is not None:
            self._watched.append((logits_NE, chosen_Nk))

    @torch.no_grad()
    def _compare(self, own_Nk: Tensor, given_Nk: Tensor, known_N1: Tensor) -> None:
        """Counts tokens whose two choices are the same set; order does not matter."""
        same_N = (own_Nk.sort(1).values == given_Nk.sort(1).values).all(1)
        self._agreeing += int((same_N & known_N1[:, 0]).sum())
        self._compared += int(known_N1.sum())


def balance_loss(routed: Sequence[tuple[Tensor, Tensor]], sequence_N: Tensor, num_sequences: int) -> Tensor:
    """How unevenly the tokens of each sequence are spread over the experts: 1 if evenly, up to E / k (arXiv 2412.19437, eq. 17).

    E Σ_e f_e p_e, with f_e the share of the sequence's choices that fell on expert e, and p_e the mean probability that the
    router gave it; averaged over sequences and layers. Of sequences and not of batches, so that any split of a minibatch adds
    up to the same.

    Args:
        routed: From `RoutingReplay.watch`.
        sequence_N: int64, the number of each token's sequence; -1 for padding.
        num_sequences: What to divide by: the minibatch's sequences.
    """
    real_N = sequence_N >= 0
    sequence_M = sequence_N[real_N]
    lengths_S1 = torch.bincount(sequence_M)[:, None]
    total = torch.zeros((), device=sequence_N.device)
    for logits_NE, chosen_Nk in routed:
        probabilities_ME = logits_NE[real_N].softmax(-1, dtype=torch.float32)
        picked_ME = torch.zeros_like(probabilities_ME).scatter(1, chosen_Nk[real_N].long(), 1.0 / chosen_Nk.shape[1])
        nothing_SE = probabilities_ME.new_zeros(len(lengths_S1), logits_NE.shape[1])
        share_SE = nothing_SE.index_add(0, sequence_M, picked_ME) / lengths_S1
        mean_SE = nothing_SE.index_add(0, sequence_M, probabilities_ME) / lengths_S1
        total = total + logits_NE.shape[1] * (share_SE * mean_SE).sum()
    return total / (num_sequences * len(routed))
