"""The learner: a plain class that needs neither Ray nor vLLM.

In a process group of torch.distributed it is one rank of several, which share the policy by FSDP2 and call every method together.

Shapes: B sequences, T predicted positions, N response tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import pad
from transformers import PreTrainedModel

from policies.dtensor import full_tensor
from policies.export import save_policy
from policies.inputs import dummy_image, vision_tokens
from policies.loading import load_policy, load_processor
from policies.lora import adapters_off, is_adapter
from policies.packing import real_tokens
from policies.response_logprobs import ResponseLogprobs
from policies.routing import UNKNOWN, RoutingReplay, balance_loss
from policies.sharding import empty_policy, fill_policy, shard_policy
from rl.config import TrainConfig
from rl.corrections import mismatch_weights, scale_gradient
from rl.distillation import token_advantages
from rl.learner.metrics import (
    Outcome,
    gap_metrics,
    gather_outcomes,
    nonfinite_prompts,
    outcome,
    peak_memory,
    update_metrics,
)
from rl.learner.microbatches import (
    encode_media,
    idle_microbatch,
    lengthen_plan,
    make_microbatch,
    plan_microbatches,
    split_minibatches,
    split_ranks,
)
from rl.learner.optimizer import choose_what_learns, make_optimizer, make_scheduler
from rl.learner.ranks import gather, num_ranks, this_rank
from rl.learner.rng import get_rng_state, set_rng_state
from rl.objectives import Objective, accepted, choose_objective, kl_penalty
from rl.types import Microbatch, Sample, StepReport
from rollout.rendering import limit_pixels

logger = logging.getLogger(__name__)

MAX_SKIPPED_UPDATES = 3
"""Updates in a row without a finite gradient after which going on would only waste time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OldPolicy:
    """What the policy made of a microbatch before the step's first update.

    Attributes:
        logprobs_BT: Its log-probabilities, 0 outside the mask.
        experts_KNk: The experts that it chose, as `RoutingReplay` has them, to be replayed; None where there are none.
    """

    logprobs_BT: Tensor
    experts_KNk: Tensor | None = None


class Learner:
    """Owns the policy that learns, its optimizer and its learning-rate schedule.

    Args:
        config: The run's choices.
        model_path: Where to load the policy from: a checkpoint on resume, else `config.model`.
        objective: The loss, as `rl.objectives` has them; default: what the config names.
    """

    def __init__(self, config: TrainConfig, model_path: str | Path, objective: Objective | None = None) -> None:
        torch.set_num_threads(config.learner.threads)
        self.config = config
        self.device = torch.device("cuda" if config.learner.gpus else "cpu")
        self.processor = limit_pixels(load_processor(model_path), config.rollout)
        # With LoRA a checkpoint's merged weights are for others; the learner keeps base and adapters apart.
        self.policy = self._load(config.model if config.lora.rank else model_path, self._prepare)
        self.model = self.policy.model
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.scheduler = make_scheduler(self.optimizer, config.optimizer)
        self.objective = objective or choose_objective(config)
        self.routing = RoutingReplay(self.model)
        if config.balance_coefficient and not self.routing.routers:
            raise ValueError(
                f"balance_coefficient = {config.balance_coefficient:g}, but {config.model} has no experts to balance: leave it out"
            )
        # On resume, too, the reference is the policy that the run started from. With LoRA it is the adapters switched off.
        apart = config.kl_coefficient and not config.lora.rank
        self.reference = self._load(config.model, lambda model: model.requires_grad_(False)) if apart else None
        self._skipped_in_a_row = 0

    def step(self, groups: Sequence[Sequence[Sample]]) -> StepReport:
        """Learns from one step's rollouts: `num_minibatches` optimizer updates.

        Args:
            groups: The samples of each prompt, of any number.

        Returns:
            Metrics of the step: those of the objective averaged over its updates, those of the mismatch between engine and
            learner over all tokens.

        Raises:
            FloatingPointError: After MAX_SKIPPED_UPDATES updates in a row had no finite gradient.
        """
        clock = [time.perf_counter()]
        shares = split_minibatches(groups, self.config.num_minibatches)
        minibatches = [self.make_microbatches(share) for share in shares]
        clock.append(time.perf_counter())
        # The first minibatch is on-policy: its old log-probabilities are its own forward pass, before the update.
        old = [None, *(self.old_policy(minibatch) for minibatch in minibatches[1:])]
        clock.append(time.perf_counter())
        reports, outcomes = [], []
        for minibatch, minibatch_old in zip(minibatches, old, strict=False):
            report, its_outcome = self._update(minibatch, minibatch_old)
            reports.append(report)
            outcomes.append(its_outcome)
        clock.append(time.perf_counter())
        metrics = (
            {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]} if reports else {}
        )
        metrics |= gap_metrics(outcomes) if outcomes else {}
        agreeing, compared, peaks = zip(
            *gather((*self.routing.take_agreement(), peak_memory(self.device))), strict=True
        )
        if sum(compared):
            metrics["policy/routing_agreement"] = sum(agreeing) / sum(compared)
        metrics["memory/learner_peak_bytes"] = float(max(peaks))
        names = ("time/learner_inputs", "time/old_logprobs", "time/updates")
        metrics |= {name: b - a for name, a, b in zip(names, clock, clock[1:], strict=False)}
        num_updates = sum(not report["policy/skipped_updates"] for report in reports)
        return StepReport(metrics=metrics, num_updates=num_updates)

    def make_microbatches(self, samples: Sequence[Sample]) -> list[Microbatch]:
        """Makes of this rank's share of a minibatch's samples microbatches of at most `learner.microbatch_tokens`.

        All ranks get equally many, and run the vision tower in all of them if one of them needs it: they share its layers.
        """
        share = split_ranks(samples, num_ranks())[this_rank()]
        encoded = encode_media(self.processor, share)
        learner = self.config.learner
        lengths = [len(sample.token_ids) for sample in share]
        plan = plan_microbatches(lengths, learner.microbatch_tokens, packed=learner.packing)
        counts, with_media = zip(*gather((len(plan), bool(encoded))), strict=True)
        plan = lengthen_plan(plan, max(counts))
        vision = vision_tokens(self.model.config)
        batches = [make_microbatch([share[i] for i in indices], encoded, vision) for indices in plan]
        batches += [idle_microbatch() for _ in range(max(counts) - len(plan))]
        if num_ranks() > 1 and any(with_media):
            unseen = dummy_image(self.model.config.vision_config)
            batches = [replace(batch, vision=batch.vision or unseen) for batch in batches]
        return batches

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """[B, T] for each microbatch: log-probabilities under the present weights, 0 outside the mask."""
        return [old.logprobs_BT for old in self.old_policy(microbatches)]

    @torch.no_grad()
    def old_policy(self, microbatches: Sequence[Microbatch]) -> list[OldPolicy]:
        """Log-probabilities under the present weights, and the experts that were chosen on the way."""
        passes = []
        for batch in microbatches:
            with self.routing.record() as recorded, self.routing.replay(self._experts(batch, None)):
                logprobs_BT, _ = self.forward(batch)
            experts_KNk = None
            if recorded and self.config.learner.routing_replay == "R2":
                seen_N = self._as_the_model_sees(batch, _seen(batch.mask_BT))
                experts_KNk = recorded[0].masked_fill(~seen_N[None, :, None], UNKNOWN)
            passes.append(OldPolicy(logprobs_BT=logprobs_BT, experts_KNk=experts_KNk))
        return passes

    def total_logprob(self, samples: Sequence[Sample]) -> tuple[float, int]:
        """The log-probabilities of the response tokens under the present weights, added up, and how many there are."""
        batches = self.make_microbatches(samples)
        own = (
            sum(logprobs_BT.double().sum().item() for logprobs_BT in self.old_logprobs(batches)),
            sum(int(batch.mask_BT.sum()) for batch in batches),
        )
        total, num_tokens = map(sum, zip(*gather(own), strict=True))
        return total, num_tokens

    def forward(self, batch: Microbatch, policy: ResponseLogprobs | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T], 0 outside the mask, and entropies [N] of the response tokens; of the policy by default."""
        mask_BT = batch.mask_BT.to(self.device)
        vision = None if batch.vision is None else batch.vision.to(self.device)
        logprobs_N, entropies_N = (policy or self.policy)(
            batch.tokens_BL.to(self.device),
            batch.positions_3BL.to(self.device),
            mask_BT,
            vision,
            batch.lengths_B.to(self.device),
        )
        logprobs_BT = logprobs_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, logprobs_N)
        return logprobs_BT, entropies_N

    @torch.no_grad()
    def reference_logprobs(self, batch: Microbatch) -> Tensor:
        """[B, T] log-probabilities under the policy that the run started from."""
        if self.reference is not None:
            return self.forward(batch, self.reference)[0]
        with adapters_off(self.model):
            return self.forward(batch)[0]

    def _sequences(self, batch: Microbatch) -> Tensor:
        """[N] which sequence of the microbatch each token is of, -1 for padding."""
        real_BL = real_tokens(batch.lengths_B, batch.tokens_BL.shape[1])
        numbers_BL = torch.arange(len(real_BL))[:, None].expand(real_BL.shape)
        return self._as_the_model_sees(batch, numbers_BL.masked_fill(~real_BL, -1))

    def _experts(self, batch: Microbatch, old: OldPolicy | None) -> Tensor | None:
        """[K, N, k] the experts to replay: the engine's in R3, the old policy's in R2 after the first update, else None."""
        if self.config.learner.routing_replay != "R3" or not self.routing.routers or batch.idle:
            return None if old is None else old.experts_KNk
        if batch.experts_BLKk is None:
            raise ValueError(
                f"prompt {batch.prompt_ids[0]}: the engine did not tell its experts: use learner.routing_replay R2"
            )
        return self._as_the_model_sees(batch, batch.experts_BLKk).transpose(0, 1)

    def _as_the_model_sees(self, batch: Microbatch, values_BL: Tensor) -> Tensor:
        """[N, …] what is known of each token [B, L, …], in the order in which tokens pass through the layers."""
        if self.policy.packed:
            return values_BL[real_tokens(batch.lengths_B, values_BL.shape[1])].to(self.device)
        return values_BL.flatten(0, 1).to(self.device)

    def _load(self, model_path: str | Path, prepare: Callable[[PreTrainedModel], object]) -> ResponseLogprobs:
        """A policy with float32 parameters, whole, or this rank's share of it in a process group."""
        learner, temperature = self.config.learner, self.config.rollout.temperature
        dtype: torch.dtype = getattr(torch, learner.dtype)
        make = partial(
            ResponseLogprobs, temperature=temperature, packed=learner.packing, fused=self.device.type == "cuda"
        )
        if not dist.is_initialized():
            model = load_policy(model_path, dtype=torch.float32, device=self.device)
            prepare(model)
            autocast = None if dtype == torch.float32 else dtype
            return make(model, autocast=autocast)
        model = empty_policy(model_path)
        prepare(model)
        policy = make(model)
        mesh = init_device_mesh(self.device.type, (num_ranks(),))
        shard_policy(policy, mesh, dtype=dtype, offload=learner.offload)
        fill_policy(model, model_path, device=self.device, offload=learner.offload, seed=self.config.seed)
        return policy

    def _prepare(self, model: PreTrainedModel) -> None:
        choose_what_learns(model, self.config)
        if self.config.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()  # Qwen3-VL has no dropout; transformers asks for it

    def _update(
        self, minibatch: Sequence[Microbatch], old: Sequence[OldPolicy] | None
    ) -> tuple[dict[str, float], Outcome]:
        """One optimizer update; returns its metrics and what they are of.

        Every microbatch divides by the minibatch's counts, so that any split adds up to the same gradient.
        """
        own = [(len(batch.prompt_ids), int(batch.mask_BT.sum())) for batch in minibatch if not batch.idle]
        num_sequences, num_tokens = map(sum, zip(*(pair for its in gather(own) for pair in its), strict=True))
        counts = accepted(self.objective, {"num_sequences": num_sequences, "num_tokens": num_tokens})
        outcomes, kl, balance = [], 0.0, 0.0
        for index, batch in enumerate(minibatch):
            reference_BT = self.reference_logprobs(batch) if self.config.kl_coefficient else None
            with self.routing.replay(self._experts(batch, None if old is None else old[index])):
                with self.routing.watch() as routed:
                    logprobs_BT, entropies_N = self.forward(batch)
                own_BT = logprobs_BT.detach() if old is None else old[index].logprobs_BT
                mask_BT, advantages = batch.mask_BT.to(self.device), self._advantages(batch, logprobs_BT)
                rollout_BT = batch.rollout_logprobs_BT.to(self.device)
                # What sampled a token is the old policy: the learner's own, or an older one, of which only the engine tells.
                old_BT = torch.where(batch.stale_BT.to(self.device), rollout_BT, own_BT)
                weights_BT = mismatch_weights(old_BT, rollout_BT, mask_BT, self.config.correction)
                scaled_BT = scale_gradient(logprobs_BT, weights_BT)
                loss, _ = self.objective(scaled_BT, old_BT, advantages, mask_BT, **counts)
                if reference_BT is not None:
                    penalty = kl_penalty(logprobs_BT, reference_BT, mask_BT, num_sequences)
                    kl, loss = kl + penalty.item(), loss + self.config.kl_coefficient * penalty
                if self.config.balance_coefficient:
                    imbalance = balance_loss(routed, self._sequences(batch), num_sequences)
                    loss = loss + self.config.balance_coefficient * imbalance
                    balance += 0.0 if batch.idle else imbalance.item()
                if batch.idle:
                    loss = 0 * logprobs_BT.sum()
                # FSDP2 averages over ranks, whose losses are shares of one sum.
                (num_ranks() * loss).backward()
            if not batch.idle:
                outcomes.append(outcome(batch, advantages, logprobs_BT, old_BT, weights_BT, entropies_N))
        whole = gather_outcomes(outcomes)
        report = update_metrics(whole, self.objective, counts)
        if self.config.kl_coefficient:
            report["policy/kl"] = sum(gather(kl))
        if self.config.balance_coefficient:
            report["policy/expert_imbalance"] = sum(gather(balance))
        return report | self._apply_gradient(whole), whole

    def _advantages(self, batch: Microbatch, logprobs_BT: Tensor) -> Tensor:
        """[B] of the rewards, or [B, T] where a teacher has a word on every token."""
        advantages_B = batch.advantages_B.to(self.device)
        if batch.teacher_logprobs_BT is None:
            return advantages_B
        teacher_BT, mask_BT = batch.teacher_logprobs_BT.to(self.device), batch.mask_BT.to(self.device)
        return token_advantages(advantages_B, logprobs_BT, teacher_BT, mask_BT, self.config.teacher)

    def _apply_gradient(self, of: Outcome) -> dict[str, float]:
        """Clips and applies the gradient, or drops it if it is not finite, and says so."""
        limit = self.config.optimizer.max_grad_norm
        grad_norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        finite = bool(grad_norm.isfinite())
        learning_rate = self.scheduler.get_last_lr()[0]
        if finite:
            self.optimizer.step()
            self.scheduler.step()
            self._skipped_in_a_row = 0
        else:
            self._skipped_in_a_row += 1
            culprits = nonfinite_prompts(of) or ["none of the sequences alone"]
            if this_rank() == 0:  # all ranks know the same
                logger.warning(
                    "update skipped: the gradient is not finite; log-probabilities to blame: %s", ", ".join(culprits)
                )
        self.optimizer.zero_grad(set_to_none=True)
        if self._skipped_in_a_row >= MAX_SKIPPED_UPDATES:
            raise FloatingPointError(
                f"{self._skipped_in_a_row} updates in a row had no finite gradient (learning_rate {learning_rate:g}): "
                "lower optimizer.learning_rate, or resume from an earlier checkpoint"
            )
        norm = float(grad_norm) if finite else 0.0
        return {
            "policy/grad_norm": norm,
            "policy/learning_rate": learning_rate,
            "policy/skipped_updates": float(not finite),
        }

    def save(self, folder: Path) -> None:
        """Writes a folder that `from_pretrained` loads, plus `trainer/` with optimizer, schedule and RNG."""
        save_policy(self.model, self.processor, folder)
        state = self._state()
        dcp.save(state, checkpoint_id=str(folder / "trainer"), no_dist=not dist.is_initialized())

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote beside the weights, which `model_path` has brought already."""
        state = self._state()
        dcp.load(state, checkpoint_id=str(folder / "trainer"), no_dist=not dist.is_initialized())
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        set_rng_state(state["rng"])

    def _state(self) -> dict[str, Any]:
        """What resuming needs beside the weights; adapters in place, so that loading fills them."""
        return {
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "scheduler": self.scheduler.state_dict(),
            "rng": get_rng_state(),
            "adapters": {n: p.detach() for n, p in self.model.named_parameters() if is_adapter(n)},
        }


def _seen(mask_BT: Tensor) -> Tensor:
    """[B, L] True at tokens that some prediction of the loss depends on: all up to the last one before the end."""
    return pad(mask_BT.flip(1).cumsum(1).flip(1) > 0, (0, 1))
