"""The learner: a plain class without Ray and vLLM.

In a process group of torch.distributed it is one of several ranks. They share the policy by FSDP2 and call every method together.

Shapes: B sequences, T predicted positions, N response tokens, K MoE layers, k experts of a token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from policies.dtensor import full_tensor
from policies.host_copies import HostCopies
from policies.inputs import dummy_image, vision_tokens
from policies.loading import load_processor
from policies.lora import adapters_off
from policies.response_logprobs import ResponseLogprobs
from policies.routing import UNKNOWN, RoutingReplay, balance_loss
from rl.config import LearningOptions
from rl.corrections import mismatch_weights, off_policy_mask, scale_gradient
from rl.distillation import token_advantages
from rl.hardware.stopwatch import Stopwatch
from rl.learner.metrics import (
    TokenTensors,
    UpdateRecord,
    gap_metrics,
    last_update,
    mean_update,
    peak_memory,
    record_update,
    update_metrics,
)
from rl.learner.microbatches import (
    Microbatch,
    encode_media,
    lengthen_plan,
    make_microbatch,
    padding_microbatch,
    plan_microbatches,
    split_minibatches,
    split_ranks,
)
from rl.learner.nonfinite import nonfinite_origin
from rl.learner.optimizer import make_optimizer, make_scheduler
from rl.learner.policy import load_reference, load_trainable
from rl.learner.prefixes import common_beginnings
from rl.learner.ranks import gather, gather_on_first, num_ranks, rank_mesh, sum_over_ranks, this_rank
from rl.learner.replay import engines_experts, num_copies, token_places
from rl.learner.state import load_trainer, save_part
from rl.objectives import Objective, accepted, choose_objective, kl_penalty
from rl.objectives.token_weights import token_weights
from rl.samples import Sample
from rl.types import StepReport
from rollout.rendering import limit_pixels

logger = logging.getLogger(__name__)

MAX_SKIPPED_UPDATES = 3
"""Consecutive updates without a finite gradient that end the run."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OldPolicyPass:
    """Forward pass of one microbatch before the step's first update."""

    logprobs_BT: Tensor
    """Log-probabilities, 0 outside the mask."""
    experts_KNk: Tensor | None = None
    """The chosen experts, as `RoutingReplay` records them; None if none are replayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinibatchCounts:
    """Counts over the microbatches of all ranks: the denominators of every loss."""

    num_sequences: int
    num_tokens: int
    """Response tokens."""


class Learner:
    """Owns the policy in training, its optimizer and its learning-rate schedule.

    Args:
        options: The learner's options.
        model_path: The policy to load: a checkpoint on resume, else `options.model`.
        objective: The loss, with `sapo_loss`'s signature; default: the one that `options.objective` names.
    """

    def __init__(self, options: LearningOptions, model_path: str | Path, objective: Objective | None = None) -> None:
        if options.learner.threads is not None:
            torch.set_num_threads(options.learner.threads)
        self.options = options
        self.device = torch.device("cuda" if options.learner.gpus else "cpu")
        self.processor = limit_pixels(load_processor(model_path), options.rollout)
        mesh = rank_mesh(options.learner.replicas or 1, self.device.type)
        self.policy = load_trainable(options, model_path, self.device, mesh)
        self.model = self.policy.model
        self.optimizer = make_optimizer(self.model, options.optimizer)
        self.scheduler = make_scheduler(self.optimizer, options.optimizer)
        self.objective = objective or choose_objective(options)
        self.routing = RoutingReplay(self.model)
        if options.balance_coefficient and not self.routing.routers:
            raise ValueError(
                f"balance_coefficient = {options.balance_coefficient:g}, but {options.model} has no experts to balance: "
                "leave it out"
            )
        # With LoRA the reference is the policy with its adapters switched off.
        has_reference = options.kl_coefficient and not options.lora.rank
        self.reference = load_reference(options, self.device, mesh) if has_reference else None
        self.num_ranks, self._host_copies, self._skipped_in_a_row = num_ranks(), HostCopies(), 0

    def step(self, groups: Sequence[Sequence[Sample]]) -> StepReport:
        """Learns from one step's samples by `num_minibatches` optimizer updates.

        Args:
            groups: The samples of each prompt, any number.

        Returns:
            Metrics of the step: the objective's, averaged over the updates; engine against learner, over all tokens. On ranks
            other than 0 only those that need no other rank.

        Raises:
            FloatingPointError: MAX_SKIPPED_UPDATES consecutive updates had no finite gradient.
        """
        timer = Stopwatch()
        shares = split_minibatches(groups, self.options.num_minibatches)
        minibatches = [self.make_microbatches(share) for share in shares]
        timer.lap("learner_inputs")
        # The first minibatch is on-policy: its own forward pass gives its old log-probabilities.
        old = [None, *(self.old_policy(minibatch) for minibatch in minibatches[1:])]
        timer.lap("old_logprobs")
        reports, records = [], []
        for minibatch, passes in zip(minibatches, old, strict=False):
            update = self._update(minibatch, passes)
            if update is None:
                break
            reports.append(update[0])
            records += update[1]
        timer.lap("updates")
        num_updates = sum(not report["policy/skipped_updates"] for report in reports)
        num_lost = sum(batch.num_lost for minibatch in minibatches for batch in minibatch)
        metrics = {
            **mean_update(reports),
            **last_update(reports),
            **gap_metrics(records),
            "policy/updates": float(num_updates),
            **self._rank_metrics(num_lost),
            **timer.metrics(),
        }
        return StepReport(metrics=metrics, num_updates=num_updates)

    def make_microbatches(self, samples: Sequence[Sample]) -> list[Microbatch]:
        """Makes this rank's microbatches of a minibatch, of at most `learner.microbatch_tokens` tokens each.

        All ranks get the same number. If one of them has images, all run the vision tower: they share its layers.
        """
        learner, vision = self.options.learner, vision_tokens(self.model.config)
        share = split_ranks(samples, num_ranks(), self._shared(samples))[this_rank()] if num_ranks() > 1 else samples
        shared, lengths = self._shared(share), [len(sample.token_ids) for sample in share]
        plan = plan_microbatches(lengths, learner.microbatch_tokens, packed=learner.packing, shared=shared)
        encoded = encode_media(self.processor, share)
        counts, with_media = zip(*gather((len(plan), bool(encoded))), strict=True)
        plan = lengthen_plan(plan, max(counts))
        make = partial(make_microbatch, encoded=encoded, vision=vision, packed=learner.packing)
        batches = []
        for indices in plan:
            follows = [index - 1 == before for before, index in pairwise([-2, *indices])]
            batches.append(
                make([share[i] for i in indices], shared=[shared[i] * f for i, f in zip(indices, follows, strict=True)])
            )
        batches += [padding_microbatch(packed=learner.packing) for _ in range(max(counts) - len(plan))]
        if num_ranks() > 1 and any(with_media):
            dummy = dummy_image(self.model.config.vision_config)
            batches = [replace(batch, vision=batch.vision or dummy) for batch in batches]
        return batches

    def _shared(self, samples: Sequence[Sample]) -> list[int]:
        """Returns the tokens at the beginning of each sample that pass through the layers with another one."""
        learner = self.options.learner
        if not (learner.packing and learner.share_prefixes):
            return [0] * len(samples)
        return common_beginnings(samples, vision_tokens(self.model.config))

    @torch.no_grad()
    def old_policy(self, microbatches: Sequence[Microbatch]) -> list[OldPolicyPass]:
        """Runs each microbatch under the present weights: log-probabilities, and the chosen experts for R2."""
        passes = []
        for batch in microbatches:
            with (
                self.routing.record() as recorded,
                self.routing.replay(self._experts(batch, None), self._copies(batch)),
            ):
                logprobs_BT, _ = self.forward(batch)
            experts_KNk = None
            if recorded and self._mode == "R2":
                experts_KNk = recorded[0].masked_fill(self._copies(batch)[None, :, None] == 0, UNKNOWN)
            passes.append(OldPolicyPass(logprobs_BT=logprobs_BT, experts_KNk=experts_KNk))
        return passes

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """[B, T] for each microbatch: log-probabilities under the present weights, 0 outside the mask."""
        return [old.logprobs_BT for old in self.old_policy(microbatches)]

    def total_logprob(self, samples: Sequence[Sample]) -> tuple[float, int]:
        """Sum of the response tokens' log-probabilities under the present weights, and their number."""
        batches = self.make_microbatches(samples)
        total = sum(logprobs_BT.double().sum().item() for logprobs_BT in self.old_logprobs(batches))
        total, num_tokens = sum_over_ranks(total, sum(int(batch.mask_BT.sum()) for batch in batches))
        return total, int(num_tokens)

    def forward(self, batch: Microbatch, policy: ResponseLogprobs | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T], 0 outside the mask, and entropies [N] of the response tokens; default: of the policy."""
        batch = batch.to(self.device)
        logprobs_N, entropies_N = (policy or self.policy)(
            batch.tokens_BL, batch.positions_3BL, batch.mask_BT, batch.vision, batch.row
        )
        logprobs_BT = logprobs_N.new_zeros(batch.mask_BT.shape).masked_scatter(batch.mask_BT, logprobs_N)
        return logprobs_BT, entropies_N

    @torch.no_grad()
    def reference_logprobs(self, batch: Microbatch) -> Tensor:
        """[B, T] log-probabilities under the policy that the run started from."""
        if self.reference is not None:
            return self.forward(batch, self.reference)[0]
        with adapters_off(self.model):
            return self.forward(batch)[0]

    def _update(
        self, microbatches: Sequence[Microbatch], old: Sequence[OldPolicyPass] | None
    ) -> tuple[dict[str, float], list[UpdateRecord]] | None:
        """Makes one optimizer update. Each microbatch divides by the minibatch's counts, so any split gives the same gradient.

        Returns:
            Its metrics, and the records of all microbatches; without records on ranks other than 0. None, and no update, if the
            policy has moved too far in this step.
        """
        real = [batch for batch in microbatches if not batch.is_padding]
        num_sequences, num_tokens = sum_over_ranks(
            sum(len(batch.prompt_ids) for batch in real), sum(int(batch.mask_BT.sum()) for batch in real)
        )
        counts = MinibatchCounts(num_sequences=int(num_sequences), num_tokens=int(num_tokens))
        records: list[UpdateRecord] = []
        for index, batch in enumerate(microbatches):
            records += self._backward(batch.to(self.device), None if old is None else old[index], counts)
        if self._has_moved(records):
            self.optimizer.zero_grad(set_to_none=True)
            return None
        records = [record for rank_records in gather_on_first(records) for record in rank_records]
        return update_metrics(records) | self._apply_gradient(records, microbatches), records

    def _has_moved(self, records: Sequence[UpdateRecord]) -> bool:
        """Returns True if the policy's distance to that of the step's beginning exceeds `target_kl` (early stopping, as in PPO).

        The first minibatch has a distance of 0, so each step makes an update. All ranks get the same answer.
        """
        limit = self.options.correction.target_kl
        if not limit:
            return False
        kl, num_tokens = sum_over_ranks(
            sum(record.kl_sum for record in records), sum(record.counts["entropy"] for record in records)
        )
        return kl > limit * num_tokens

    def _backward(self, batch: Microbatch, old: OldPolicyPass | None, counts: MinibatchCounts) -> list[UpdateRecord]:
        """Adds one microbatch's gradient and returns its record; none for padding, which runs all layers and adds nothing."""
        reference_BT = self.reference_logprobs(batch) if self.options.kl_coefficient else None
        # The backward pass stays inside: activation checkpointing runs the layers again.
        with self.routing.replay(self._experts(batch, old), self._copies(batch)):
            with self.routing.watch() as routed:
                logprobs_BT, entropies_N = self.forward(batch)
            if batch.is_padding:
                (0 * logprobs_BT.sum()).backward()
                return []
            begun_BT = logprobs_BT.detach() if old is None else old.logprobs_BT
            # The policy of off-policy tokens is gone: theirs are the engine's.
            old_BT = torch.where(batch.stale_BT, batch.rollout_logprobs_BT, begun_BT)
            weights_BT = mismatch_weights(old_BT, batch.rollout_logprobs_BT, batch.mask_BT, self.options.correction)
            advantages = self._advantages(batch, logprobs_BT)
            loss_mask_BT = self._loss_mask(batch, logprobs_BT, old_BT, advantages)
            denominators = accepted(self.objective, asdict(counts))
            weighted_BT = scale_gradient(logprobs_BT, weights_BT)
            weighted_BT.retain_grad()  # the objective's gradient: those of penalties do not pass it
            loss, metrics = self.objective(weighted_BT, old_BT, advantages, loss_mask_BT, **denominators)
            sums = {"loss/objective": loss}
            if reference_BT is not None:
                sums["policy/kl"] = kl_penalty(logprobs_BT, reference_BT, batch.mask_BT, counts.num_sequences)
                loss = loss + self.options.kl_coefficient * sums["policy/kl"]
            if self.options.balance_coefficient:
                sums["policy/expert_imbalance"] = balance_loss(routed, *token_places(batch), counts.num_sequences)
                loss = loss + self.options.balance_coefficient * sums["policy/expert_imbalance"]
            # FSDP2 averages gradients over ranks; the ranks' losses are shares of one sum.
            (num_ranks() * loss).backward()
        gradient_BT = torch.zeros_like(logprobs_BT) if weighted_BT.grad is None else weighted_BT.grad / num_ranks()
        tensors = TokenTensors(
            logprobs_BT=logprobs_BT.detach(),
            old_logprobs_BT=old_BT,
            begun_logprobs_BT=begun_BT,
            correction_BT=weights_BT,
            omega_BT=token_weights(self.objective, gradient_BT, old_BT, advantages, batch.mask_BT, denominators),
            loss_mask_BT=loss_mask_BT,
            advantages=advantages,
            entropies_N=entropies_N.detach(),
        )
        return [record_update(batch, tensors, metrics, sums)]

    def _loss_mask(self, batch: Microbatch, logprobs_BT: Tensor, old_BT: Tensor, advantages: Tensor) -> Tensor:
        """[B, T] True at response tokens that the off-policy sequence mask leaves in the loss."""
        correction = self.options.correction
        reference_BT = batch.rollout_logprobs_BT if correction.off_policy_reference == "engine" else old_BT
        return off_policy_mask(logprobs_BT, reference_BT, advantages, batch.mask_BT, correction.off_policy_threshold)

    def _advantages(self, batch: Microbatch, logprobs_BT: Tensor) -> Tensor:
        """[B] of the rewards; [B, T] with a teacher, which scores every token."""
        if batch.teacher_logprobs_BT is None:
            return batch.advantages_B
        return token_advantages(
            batch.advantages_B, logprobs_BT, batch.teacher_logprobs_BT, batch.mask_BT, self.options.teacher
        )

    def _apply_gradient(self, records: Sequence[UpdateRecord], microbatches: Sequence[Microbatch]) -> dict[str, float]:
        """Clips and applies the gradient. Drops it if it is not finite, and logs where that began, and the prompts."""
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        total_norm = get_total_norm([parameter.grad for parameter in trained])
        grad_norm = full_tensor(total_norm)
        is_finite = bool(grad_norm.isfinite())
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if is_finite:
            clip_grads_with_norm_(trained, self.options.optimizer.max_grad_norm, total_norm)
            self.optimizer.step()
            self.scheduler.step()
            self._skipped_in_a_row = 0
        else:
            self._skipped_in_a_row += 1
            origin = nonfinite_origin(self.model, [partial(self.forward, batch) for batch in microbatches])
            if this_rank() == 0:
                prompts = [prompt for record in records for prompt in record.nonfinite_prompts]
                text = "update skipped: the gradient is not finite, first %s; prompts with log-probabilities that are not: %s"
                logger.warning(text, origin, ", ".join(prompts or ["none of the sequences alone"]))
        self.optimizer.zero_grad(set_to_none=True)
        if self._skipped_in_a_row >= MAX_SKIPPED_UPDATES:
            raise FloatingPointError(
                f"{self._skipped_in_a_row} updates in a row had no finite gradient (learning_rate {learning_rate:g}): "
                "lower optimizer.learning_rate, or resume from an earlier checkpoint"
            )
        return {
            "policy/grad_norm": float(grad_norm) if is_finite else 0.0,
            "policy/learning_rate": learning_rate,
            "policy/skipped_updates": float(not is_finite),
        }

    @property
    def _mode(self) -> Literal["off", "R2", "R3"]:
        return self.options.learner.routing_replay

    def _experts(self, batch: Microbatch, old: OldPolicyPass | None) -> Tensor | None:
        """[K, N, k] the experts to replay: the engine's in R3; the old policy's in R2 after the first update; else None."""
        if self._mode == "R3" and self.routing.routers and not batch.is_padding:
            return engines_experts(batch).to(self.device)
        return None if old is None else old.experts_KNk

    def _copies(self, batch: Microbatch) -> Tensor:
        """[N] sequences that have each token of the row, as `num_copies`."""
        return num_copies(batch, self._mode).to(self.device)

    def _rank_metrics(self, num_lost: int) -> dict[str, float]:
        """Routing agreement, lost experts and peak memory over all ranks, given this rank's sequences that lack lost experts."""
        ranks = gather((*self.routing.take_agreement(), num_lost, peak_memory(self.device)))
        agreeing, compared, lost, peaks = zip(*ranks, strict=True)
        metrics = {"memory/learner_peak_bytes": float(max(peaks))}
        if sum(compared):
            metrics["policy/routing_agreement"] = sum(agreeing) / sum(compared)
        if self._mode == "R3":
            metrics["policy/lost_experts"] = float(sum(lost))
        if sum(lost) and this_rank() == 0:
            logger.warning("the experts of %d sequences are lost with their node: the router chooses", sum(lost))
        return metrics

    def check(self) -> None:
        """Does nothing: a learner in this process has not died; see `LearnerGroup.check`."""

    def save(self, folder: Path, *, background: bool = False) -> None:
        """Writes this rank's part of a checkpoint; see `save_part`."""
        copies = self._host_copies if background else None
        save_part(folder, self.model, self.processor, self.optimizer, self.scheduler, copies=copies)

    def load(self, folder: Path) -> None:
        """Restores the trainer state that `save` wrote; the weights came from `model_path`."""
        load_trainer(folder, self.model, self.optimizer, self.scheduler)
