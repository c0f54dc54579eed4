"""Routing replay for mixtures of experts: records each token's experts in one forward pass, and replays them in others.

With a stale minibatch, the current weights send some tokens to other experts than the old policy did. The ratio then compares two
different networks. Replaying the old policy's choice (R2) or the engine's (R3) removes that jump (arXiv 2512.01374). Only the
*choice* is replayed: the chosen experts' weights come from the router's current logits, so the router still learns.

Shapes: S sequences, E experts, K MoE layers, N tokens of a batch in model order, M tokens of all sequences, k experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

UNKNOWN = -1
"""Placeholder for an expert's number: the router chooses."""


class RoutingReplay:
    """Hooks on every router of a model that record or replace its choices.

    Args:
        model: A policy; without routers nothing is recorded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.routers = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
        self._recorded: list[Tensor | None] | None = None
        self._replayed_KNk: Tensor | None = None
        self._copies_N: Tensor | None = None
        self._watched: list[tuple[Tensor, Tensor]] | None = None
        self._agreeing, self._compared = 0, 0
        for layer, router in enumerate(self.routers):
            router.register_forward_hook(partial(self._after_router, layer))

    @contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """Records the choices of the one forward pass in the block.

        Yields:
            A list that contains, after the block, one tensor [K, N, k] int16; empty without routers.
        """
        choices: list[Tensor] = []
        self._recorded = [None] * len(self.routers)
        try:
            yield choices
            if self.routers:
                choices.append(torch.stack([choice for choice in self._recorded if choice is not None]))
        finally:
            self._recorded = None

    @contextmanager
    def replay(self, experts_KNk: Tensor | None, copies_N: Tensor | None = None) -> Iterator[None]:
        """Makes every forward pass in the block use given experts.

        Gradient checkpointing runs the forward pass again, so call `backward` inside the block.

        Args:
            experts_KNk: Experts from `record`. The router chooses for tokens with any UNKNOWN. None replays nothing.
            copies_N: Sequences that share each token, for `take_agreement`. Default: one.

        Raises:
            ValueError: The shape does not fit the model, or all experts are number 0, which no router chooses.
        """
        if experts_KNk is not None:
            self._check(experts_KNk)
        self._replayed_KNk, self._copies_N = experts_KNk, copies_N
        try:
            yield
        finally:
            self._replayed_KNk = self._copies_N = None

    @contextmanager
    def watch(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Records, for `balance_loss`, the routers' logits and choices in the one forward pass in the block.

        Yields:
            A list that contains, after the block, each layer's logits [N, E], with gradient, and chosen experts [N, k].
        """
        self._watched = []
        try:
            yield self._watched
        finally:
            self._watched = None

    def take_agreement(self) -> tuple[int, int]:
        """Returns how many replayed (token, layer) choices the router agrees with, and how many there were, since the last call."""
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
        logits_NE, _, router_Nk = output
        if self._recorded is not None:
            self._recorded[layer] = router_Nk.to(torch.int16)
        if self._replayed_KNk is None:
            self._watch(logits_NE, router_Nk)
            return None
        replayed_Nk = self._replayed_KNk[layer].to(router_Nk.device, router_Nk.dtype)
        known_N1 = (replayed_Nk != UNKNOWN).all(1, keepdim=True)
        chosen_Nk = torch.where(known_N1, replayed_Nk, router_Nk)
        self._compare(router_Nk, replayed_Nk, known_N1)
        self._watch(logits_NE, chosen_Nk)
        weights_Nk = logits_NE.softmax(-1, dtype=torch.float32).gather(1, chosen_Nk)
        weights_Nk = weights_Nk / weights_Nk.sum(1, keepdim=True)
        return logits_NE, weights_Nk.to(logits_NE.dtype), chosen_Nk

    def _watch(self, logits_NE: Tensor, chosen_Nk: Tensor) -> None:
        if self._watched is not None:
            self._watched.append((logits_NE, chosen_Nk))

    @torch.no_grad()
    def _compare(self, router_Nk: Tensor, replayed_Nk: Tensor, known_N1: Tensor) -> None:
        """Counts tokens with the same set of experts in both choices, in any order, once for each sequence that has them."""
        same_N = (router_Nk.sort(1).values == replayed_Nk.sort(1).values).all(1)
        known_N = known_N1[:, 0] if self._copies_N is None else known_N1[:, 0] * self._copies_N
        self._agreeing += int((same_N * known_N).sum())
        self._compared += int(known_N.sum())


def balance_loss(
    routed: Sequence[tuple[Tensor, Tensor]], place_M: Tensor, sequence_M: Tensor, num_sequences: int
) -> Tensor:
    """Returns the imbalance of experts per sequence: 1 if balanced, up to E / k (arXiv 2412.19437, eq. 17).

    It is E Σ_e f_e p_e, averaged over sequences and layers. f_e is the share of the sequence's choices of expert e, p_e the mean
    probability of expert e. It is computed per sequence and not per batch, so that any split of a minibatch adds up to the same.

    Args:
        routed: From `RoutingReplay.watch`.
        place_M: int64, the place among the N tokens of each token of each sequence; sequences may share tokens.
        sequence_M: int64, the number of its sequence.
        num_sequences: Divisor: the minibatch's number of sequences.
    """
    lengths_S1 = torch.bincount(sequence_M)[:, None]
    total = torch.zeros((), device=sequence_M.device)
    for logits_NE, chosen_Nk in routed:
        probabilities_NE = logits_NE.softmax(-1, dtype=torch.float32)
        picked_NE = torch.zeros_like(probabilities_NE).scatter(1, chosen_Nk.long(), 1.0 / chosen_Nk.shape[1])
        nothing_SE = probabilities_NE.new_zeros(len(lengths_S1), logits_NE.shape[1])
        share_SE = nothing_SE.index_add(0, sequence_M, picked_NE[place_M]) / lengths_S1
        mean_SE = nothing_SE.index_add(0, sequence_M, probabilities_NE[place_M]) / lengths_S1
        total = total + logits_NE.shape[1] * (share_SE * mean_SE).sum()
    return total / (num_sequences * len(routed))
