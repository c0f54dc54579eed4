"""The learner on one rank: a plain class that needs neither Ray nor vLLM.

Shapes: B sequences, T predicted positions, N response tokens.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.functional import pad

from policies.export import save_policy
from policies.inputs import encode_images, hidden_states
from policies.loading import load_policy, load_processor, vision_token_ids
from policies.logprobs import token_logprobs
from policies.lora import adapters_off, is_adapter
from policies.routing import UNKNOWN, RoutingReplay
from rl.batching import make_microbatch, plan_microbatches, split_minibatches
from rl.config import TrainConfig
from rl.corrections import mismatch_metrics, mismatch_weights, scale_gradient
from rl.objectives import Objective, accepted, choose_objective, kl_penalty
from rl.optimizer import choose_what_learns, make_optimizer, make_scheduler
from rl.rng import get_rng_state, set_rng_state
from rl.types import Microbatch, Sample, StepReport

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
        self.processor = load_processor(model_path)
        # With LoRA a checkpoint's merged weights are for others; the learner keeps base and adapters apart.
        base = config.model if config.lora.rank else model_path
        self.model = load_policy(base, dtype=torch.float32, device=self.device)
        choose_what_learns(self.model, config)
        if config.learner.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()  # Qwen3-VL has no dropout; transformers asks for it
        self.banned_ids = torch.tensor(vision_token_ids(self.model.config), device=self.device)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.scheduler = make_scheduler(self.optimizer, config.optimizer)
        self.objective = objective or choose_objective(config)
        self.routing = RoutingReplay(self.model)
        # On resume, too, the reference is the policy that the run started from. With LoRA it is the adapters switched off.
        apart = config.kl_coefficient and not config.lora.rank
        self.reference = self._frozen(config.model) if apart else None
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
        reports, gaps_N = [], []
        for minibatch, minibatch_old in zip(minibatches, old, strict=False):
            report, behaviour = self._update(minibatch, minibatch_old)
            reports.append(report)
            gaps_N += [rollout_gaps(batch, logprobs) for batch, logprobs in zip(minibatch, behaviour, strict=True)]
        clock.append(time.perf_counter())
        metrics = (
            {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]} if reports else {}
        )
        metrics |= gap_metrics(torch.cat(gaps_N)) if gaps_N else {}
        if (agreement := self.routing.take_agreement()) is not None:
            metrics["policy/routing_agreement"] = agreement
        metrics["memory/learner_peak_bytes"] = float(peak_memory(self.device))
        names = ("time/learner_inputs", "time/old_logprobs", "time/updates")
        metrics |= {name: b - a for name, a, b in zip(names, clock, clock[1:], strict=False)}
        num_updates = sum(not report["policy/skipped_updates"] for report in reports)
        return StepReport(metrics=metrics, num_updates=num_updates)

    def make_microbatches(self, samples: Sequence[Sample]) -> list[Microbatch]:
        """Pads a minibatch's samples into microbatches of at most `learner.microbatch_tokens`."""
        distinct = {id(sample.images): sample.images for sample in samples}
        encoded = {key: encode_images(self.processor, images) for key, images in distinct.items()}
        config = self.model.config
        plan = plan_microbatches([len(sample.token_ids) for sample in samples], self.config.learner.microbatch_tokens)
        return [
            make_microbatch(
                [samples[i] for i in indices], encoded, config.image_token_id, config.vision_config.spatial_merge_size
            )
            for indices in plan
        ]

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """[B, T] for each microbatch: log-probabilities under the present weights, 0 outside the mask."""
        return [old.logprobs_BT for old in self.old_policy(microbatches)]

    @torch.no_grad()
    def old_policy(self, microbatches: Sequence[Microbatch]) -> list[OldPolicy]:
        """Log-probabilities under the present weights, and the experts that were chosen on the way."""
        passes = []
        for batch in microbatches:
            with self.routing.record() as recorded:
                logprobs_BT, _ = self.forward(batch)
            experts_KNk = None
            if recorded and self.config.learner.routing_replay == "R2":
                seen_N = _seen(batch.mask_BT).flatten().to(self.device)
                experts_KNk = recorded[0].masked_fill(~seen_N[None, :, None], UNKNOWN)
            passes.append(OldPolicy(logprobs_BT=logprobs_BT, experts_KNk=experts_KNk))
        return passes

    def forward(self, batch: Microbatch, model: torch.nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T], 0 outside the mask, and entropies [N] of the response tokens; of the policy by default."""
        model = model or self.model
        mask_BT = batch.mask_BT.to(self.device)
        tokens_BL = batch.tokens_BL.to(self.device)
        vision = None if batch.vision is None else batch.vision.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.learner.dtype == "bfloat16"):
            hidden_BLH = hidden_states(model, tokens_BL, batch.positions_3BL.to(self.device), vision)
            logprobs_N, entropies_N = token_logprobs(
                hidden_BLH[:, :-1][mask_BT],
                model.get_output_embeddings().weight,
                tokens_BL[:, 1:][mask_BT],
                self.banned_ids,
                temperature=self.config.rollout.temperature,
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

    def _frozen(self, model_path: str | Path) -> torch.nn.Module:
        return load_policy(model_path, dtype=torch.float32, device=self.device).requires_grad_(False)

    def _update(
        self, minibatch: Sequence[Microbatch], old: Sequence[OldPolicy] | None
    ) -> tuple[dict[str, float], Sequence[Tensor]]:
        """One optimizer update; returns its metrics and the log-probabilities [B, T] that its ratios started from.

        Every microbatch divides by the minibatch's counts, so that any split adds up to the same gradient.
        """
        num_sequences = sum(len(batch.prompt_ids) for batch in minibatch)
        num_tokens = sum(int(batch.mask_BT.sum()) for batch in minibatch)
        counts = accepted(self.objective, {"num_sequences": num_sequences, "num_tokens": num_tokens})
        new, entropies, weights, kl = [], [], [], 0.0
        for index, batch in enumerate(minibatch):
            reference_BT = self.reference_logprobs(batch) if self.config.kl_coefficient else None
            with self.routing.replay(None if old is None else old[index].experts_KNk):
                logprobs_BT, entropies_N = self.forward(batch)
                old_BT = logprobs_BT.detach() if old is None else old[index].logprobs_BT
                advantages_B, mask_BT = batch.advantages_B.to(self.device), batch.mask_BT.to(self.device)
                rollout_BT = batch.rollout_logprobs_BT.to(self.device)
                weights_BT = mismatch_weights(old_BT, rollout_BT, mask_BT, self.config.correction)
                scaled_BT = scale_gradient(logprobs_BT, weights_BT)
                loss, _ = self.objective(scaled_BT, old_BT, advantages_B, mask_BT, **counts)
                if reference_BT is not None:
                    penalty = kl_penalty(logprobs_BT, reference_BT, mask_BT, num_sequences)
                    kl, loss = kl + penalty.item(), loss + self.config.kl_coefficient * penalty
                loss.backward()
            new.append(logprobs_BT.detach())
            entropies.append(entropies_N)
            weights.append(weights_BT)
        behaviour = new if old is None else [its.logprobs_BT for its in old]
        # Value and metrics of the whole minibatch at once: the mean of microbatch means is not the mean.
        advantages_B = torch.cat([batch.advantages_B for batch in minibatch]).to(self.device)
        mask_BT = _stack([batch.mask_BT for batch in minibatch]).to(self.device)
        rollout_BT = _stack([batch.rollout_logprobs_BT for batch in minibatch]).to(self.device)
        loss, metrics = self.objective(_stack(new), _stack(behaviour), advantages_B, mask_BT, **counts)
        report = {f"policy/{name}": float(value) for name, value in metrics.items()}
        report |= {"loss/objective": float(loss), "policy/entropy": float(torch.cat(entropies).mean())}
        report |= mismatch_metrics(_stack(behaviour), rollout_BT, _stack(weights), mask_BT)
        if self.config.kl_coefficient:
            report["policy/kl"] = kl
        return report | self._apply_gradient(minibatch, new), behaviour

    def _apply_gradient(self, minibatch: Sequence[Microbatch], new: Sequence[Tensor]) -> dict[str, float]:
        """Clips and applies the gradient, or drops it if it is not finite, and says so."""
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        finite = bool(grad_norm.isfinite())
        learning_rate = self.scheduler.get_last_lr()[0]
        if finite:
            self.optimizer.step()
            self.scheduler.step()
            self._skipped_in_a_row = 0
        else:
            self._skipped_in_a_row += 1
            culprits = nonfinite_prompts(minibatch, new) or ["none of the sequences alone"]
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
        dcp.save(state, checkpoint_id=str(folder / "trainer"), no_dist=True)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote beside the weights, which `model_path` has brought already."""
        state = self._state()
        dcp.load(state, checkpoint_id=str(folder / "trainer"), no_dist=True)
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


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has held so far, on its GPU if it has one, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rollout_gaps(batch: Microbatch, logprobs_BT: Tensor) -> Tensor:
    """[N] |log p(learner) − log p(engine)| of each response token, under the same weights."""
    gaps_BT = (logprobs_BT.cpu() - batch.rollout_logprobs_BT).abs()
    return gaps_BT[batch.mask_BT]


def gap_metrics(gaps_N: Tensor) -> dict[str, float]:
    """Mean and maximum of the on-policy gap between engine and learner."""
    if not len(gaps_N):
        return {}
    return {"rollout/logprob_gap_mean": float(gaps_N.mean()), "rollout/logprob_gap_max": float(gaps_N.max())}


def nonfinite_prompts(minibatch: Sequence[Microbatch], logprobs: Sequence[Tensor]) -> list[str]:
    """The prompts of sequences with a log-probability that is not finite."""
    return [
        prompt_id
        for batch, logprobs_BT in zip(minibatch, logprobs, strict=True)
        for prompt_id, finite in zip(batch.prompt_ids, logprobs_BT.isfinite().all(1).tolist(), strict=True)
        if not finite
    ]


def _seen(mask_BT: Tensor) -> Tensor:
    """[B, L] True at tokens that some prediction of the loss depends on: all up to the last one before the end."""
    return pad(mask_BT.flip(1).cumsum(1).flip(1) > 0, (0, 1))


def _stack(pieces: Sequence[Tensor]) -> Tensor:
    """Matrices of different widths under one another, padded with zeros on the right."""
    width = max(piece.shape[1] for piece in pieces)
    return torch.cat([pad(piece, (0, width - piece.shape[1])) for piece in pieces])
