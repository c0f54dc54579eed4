"""The learner's options: objectives, the KL penalty, corrections, routing replay, LoRA, what learns and what is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.lora import is_adapter
from policies.packing import real_tokens
from rl.config import CorrectionConfig, LoraConfig, OptimizerConfig, TrainConfig
from rl.learner import Learner
from rl.learner.optimizer import make_optimizer
from rl.objectives import OBJECTIVES, kl_penalty
from rl.samples import Sample
from rollout.types import unknown_expert
from tests.learning import config, difference, learner_in_float64, parameters, rollout, watch_gradients


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_any_split_gives_the_same_update_under_every_objective(dense_policy: Path, name: str):
    results = []
    for budget in (4096, 60):
        options = replace(config(microbatch_tokens=budget, num_minibatches=2, max_grad_norm=1e9), objective=name)
        learner = learner_in_float64(options, dense_policy)
        gradients = watch_gradients(learner)
        learner.step(rollout())
        results.append(gradients)
    for one, other in zip(*results, strict=True):
        assert difference(other, one) <= 2e-6


CURES = {
    "token mean": {"aggregation": "token_mean"},
    "constant length": {"aggregation": "constant_length"},
    "mask": {"correction": CorrectionConfig(off_policy_threshold=1e-3)},
    "mask to the engine": {"correction": CorrectionConfig(off_policy_threshold=0.1, off_policy_reference="engine")},
    "sharp gate": {"tau_pos": 10.0, "tau_neg": 20.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CURES)
def test_any_split_gives_the_same_updates_under_every_cure(dense_policy: Path, name: str):
    results, reports = [], []
    for budget in (4096, 60):
        made = config(microbatch_tokens=budget, num_minibatches=3, max_grad_norm=1e9, learning_rate=1e-3)
        learner = learner_in_float64(replace(made, **CURES[name]), dense_policy)
        gradients = watch_gradients(learner)
        reports.append({k: v for k, v in learner.step(rollout()).metrics.items() if k.startswith(("policy/", "loss/"))})
        results.append(gradients)
    for one, other in zip(*results, strict=True):
        assert difference(other, one) <= 2e-6
    assert reports[0] == pytest.approx(reports[1], rel=1e-5, abs=1e-6)
    assert (reports[0]["policy/sequences_masked"] > 0) == ("mask" in name)
    assert 0 < reports[0]["policy/effective_sample_size"] < 1
    assert reports[0]["policy/gate_mean_last"] != reports[0]["policy/gate_mean"]


def test_the_mask_takes_what_has_become_unlikely_out_of_the_gradient(dense_policy: Path):
    # All advantages are negative, and every response is 1 nat a token less likely than for the engine.
    far = [[replace(s, advantage=-1.0, rollout_logprobs=s.rollout_logprobs + 99) for s in g] for g in rollout()]
    masked = CorrectionConfig(off_policy_threshold=1.0, off_policy_reference="engine")
    learner = Learner(replace(config(num_minibatches=1), correction=masked), dense_policy)
    metrics = learner.step(far).metrics
    assert (metrics["policy/sequences_masked"], metrics["policy/grad_norm"]) == (1.0, 0.0)
    assert (metrics["policy/effective_sample_size"], metrics["policy/negative_below_half"]) == (0.0, 1.0)
    assert metrics["policy/entropy"] > 0, "it is measured over all response tokens"


def test_an_objective_of_the_users_own_is_what_is_minimised(dense_policy: Path):
    def push_up(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT, *, num_tokens):
        return -(logprobs_BT * mask_BT).sum() / num_tokens, {"mine": mask_BT.sum()}

    groups = rollout(num_groups=2)
    learner = Learner(config(learning_rate=1e-4), dense_policy, push_up)
    [batch] = learner.make_microbatches([sample for group in groups for sample in group])
    [before_BT] = learner.old_logprobs([batch])
    metrics = learner.step(groups).metrics
    assert metrics["loss/objective"] == pytest.approx(-before_BT[batch.mask_BT].mean().item(), abs=1e-5)
    assert metrics["policy/mine"] == batch.mask_BT.sum()
    assert learner.old_logprobs([batch])[0].sum() > before_BT.sum()


def test_a_penalty_to_the_reference_holds_the_policy_back(dense_policy: Path):
    distances = {}
    for coefficient in (0.0, 100.0):
        options = replace(config(learning_rate=1e-3), kl_coefficient=coefficient, model=str(dense_policy))
        learner = Learner(options, dense_policy)
        start = parameters(learner)
        reports = [learner.step(rollout()).metrics for _ in range(4)]
        distances[coefficient] = sum((start[n] - w).square().sum().item() for n, w in parameters(learner).items())
    assert reports[0]["policy/kl"] == pytest.approx(0.0, abs=1e-7)  # it starts as its own reference
    assert reports[1]["policy/kl"] > 0
    assert distances[100.0] < distances[0.0]


def test_the_penalty_is_that_worked_by_hand():
    # d = log(reference / π) = ln 2 and −ln 2 in one response, 0 in the other: e^d − d − 1 = 1 − ln 2 and ½ + ln 2 − 1.
    logprobs_BT = torch.tensor([[-1.0, -1.0], [-1.0, -5.0]], requires_grad=True)
    reference_BT = logprobs_BT.detach() + torch.tensor([[math.log(2), -math.log(2)], [0.0, 3.0]])
    mask_BT = torch.tensor([[True, True], [True, False]])
    penalty = kl_penalty(logprobs_BT, reference_BT, mask_BT, 2)
    assert penalty.item() == pytest.approx((1 - 0.5) / 2 / 2, abs=1e-6)
    penalty.backward()
    # ∂/∂ log π = 1 − e^d: −1 and ½, over 2 tokens and 2 responses.
    assert logprobs_BT.grad[0].tolist() == pytest.approx([-0.25, 0.125])
    assert logprobs_BT.grad[1].tolist() == [0.0, 0.0]


def test_the_mismatch_to_the_engine_weighs_the_gradient(dense_policy: Path):
    """All rollout log-probabilities are −1: π_old/μ is e^(log π + 1), far below 1, which a truncated weight keeps."""
    norms, reports = {}, {}
    for cap in (0.0, 2.0):
        learner = Learner(replace(config(), correction=CorrectionConfig(token_cap=cap)), dense_policy)
        reports[cap] = learner.step(rollout()).metrics
        norms[cap] = reports[cap]["policy/grad_norm"]
    assert norms[2.0] < 0.1 * norms[0.0]
    assert reports[0.0]["loss/objective"] == reports[2.0]["loss/objective"]
    assert 0 < reports[2.0]["rollout/mismatch_ess"] < 1


def stale_moe(folder: Path, routing_replay: str, dtype: str) -> tuple[Learner, list, list, list]:
    """A learner whose weights have moved since its old-policy pass over two microbatches."""
    options = config(dtype=dtype, microbatch_tokens=150, learning_rate=3e-3)
    options = replace(options, learner=replace(options.learner, routing_replay=routing_replay))
    learner = Learner(options, folder)
    groups = rollout()
    batches = learner.make_microbatches([sample for group in groups[2:] for sample in group])
    old = learner.old_policy(batches)
    return learner, groups, batches, old


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_on_unchanged_weights_every_log_probability_is_the_old_one(moe_policy: Path, dtype: str):
    learner, _, batches, old = stale_moe(moe_policy, "R2", dtype)
    for batch, its in zip(batches, old, strict=True):
        with torch.no_grad(), learner.routing.replay(its.experts_KNk):
            assert torch.equal(learner.forward(batch)[0], its.logprobs_BT)
    agreeing, compared = learner.routing.take_agreement()
    assert agreeing == compared > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stale_minibatch_goes_through_the_experts_of_the_old_policy(moe_policy: Path, dtype: str):
    learner, groups, batches, old = stale_moe(moe_policy, "R2", dtype)
    learner.step(groups[:2])
    learner.routing.take_agreement()
    for batch, its in zip(batches, old, strict=True):
        seen_N = (its.experts_KNk != -1).all(2)[0]
        with torch.no_grad(), learner.routing.record() as free:
            learner.forward(batch)
        taken: list[Tensor] = []
        for layer, router in enumerate(learner.routing.routers):  # what the experts are really called with
            block = learner.model.model.language_model.layers[layer].mlp
            assert block.gate is router
            block.experts.register_forward_pre_hook(lambda _, args, taken=taken: taken.append(args[1].clone()))
        with torch.no_grad(), learner.routing.replay(its.experts_KNk):
            learner.forward(batch)
        assert torch.equal(torch.stack(taken)[:, seen_N].short(), its.experts_KNk[:, seen_N])  # 100 %
        assert not torch.equal(free[0][:, seen_N], its.experts_KNk[:, seen_N])  # and it would have chosen otherwise
        for layer in range(len(learner.routing.routers)):
            learner.model.model.language_model.layers[layer].mlp.experts._forward_pre_hooks.clear()
    agreeing, compared = learner.routing.take_agreement()
    assert agreeing < compared


def test_replay_can_be_switched_off_and_a_dense_policy_has_none(moe_policy: Path, dense_policy: Path):
    assert all(its.experts_KNk is None for its in stale_moe(moe_policy, "off", "float32")[3])
    metrics = Learner(config(num_minibatches=2), dense_policy).step(rollout()).metrics
    assert "policy/routing_agreement" not in metrics
    metrics = Learner(config(num_minibatches=2), moe_policy).step(rollout()).metrics
    assert 0 < metrics["policy/routing_agreement"] <= 1


def with_lora(options: TrainConfig, folder: Path, parts: tuple[str, ...] = ("language",)) -> TrainConfig:
    return replace(options, model=str(folder), lora=LoraConfig(rank=4, alpha=8.0, parts=parts))


def adapter_weights(learner: Learner) -> dict[str, Tensor]:
    return {name: value for name, value in parameters(learner).items() if is_adapter(name)}


def test_lora_learns_by_its_adapters_alone(policy: Path):
    parts = ("language", "experts") if policy.name == "moe" else ("language", "vision")
    learner = Learner(with_lora(config(learning_rate=1e-2), policy, parts), policy)
    before = parameters(learner)
    for _ in range(2):
        learner.step(rollout())
    moved = {name for name, value in parameters(learner).items() if not torch.equal(value, before[name])}
    assert moved == set(adapter_weights(learner))


def test_under_lora_the_reference_is_the_adapters_switched_off(dense_policy: Path):
    options = replace(with_lora(config(learning_rate=3e-2), dense_policy), kl_coefficient=0.1)
    learner = Learner(options, dense_policy)
    assert learner.reference is None
    first, second = (learner.step(rollout()).metrics["policy/kl"] for _ in range(2))
    assert first == pytest.approx(0.0, abs=1e-7)
    assert second > 1e-4


def test_a_lora_run_resumes_to_the_last_bit(dense_policy: Path, tmp_path: Path):
    options = with_lora(config(num_minibatches=2), dense_policy)
    learner = Learner(options, dense_policy)
    learner.step(rollout(seed=1))
    learner.save(tmp_path)
    resumed = Learner(options, tmp_path)
    resumed.load(tmp_path)
    ours, theirs = (its.step(rollout(seed=2)).metrics for its in (resumed, learner))
    kept = [name for name in ours if not name.startswith(("time/", "memory/"))]
    assert {name: ours[name] for name in kept} == {name: theirs[name] for name in kept}
    for name, value in parameters(learner).items():
        assert torch.equal(value, parameters(resumed)[name])


def test_the_vision_tower_may_have_a_learning_rate_of_its_own_or_none():
    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.ModuleDict({"visual": torch.nn.Linear(2, 2), "text": torch.nn.Linear(2, 2)})

    optimizer = make_optimizer(
        Policy(), OptimizerConfig(learning_rate=1e-3, vision_learning_rate=1e-4, weight_decay=0.1)
    )
    seen = [([p.dim() for p in g["params"]], g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert seen == [([2], 1e-3, 0.1), ([1], 1e-3, 0.0), ([2], 1e-4, 0.1), ([1], 1e-4, 0.0)]


def test_a_frozen_vision_tower_stays_as_it_is(dense_policy: Path):
    learner = Learner(config(vision_learning_rate=0.0), dense_policy)
    before = parameters(learner)
    learner.step(rollout())
    moved = {name for name, value in parameters(learner).items() if not torch.equal(value, before[name])}
    assert moved and not any(".visual." in name for name in moved)
    assert not any(".visual." in name for name, p in learner.model.named_parameters() if p.requires_grad)


def test_gradient_checkpointing_changes_memory_and_not_the_update(policy: Path):
    results = []
    for checkpointing in (False, True):
        options = config(num_minibatches=2)
        options = replace(options, learner=replace(options.learner, gradient_checkpointing=checkpointing))
        learner = learner_in_float64(options, policy)
        gradients = watch_gradients(learner)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            [batch] = learner.make_microbatches([sample for group in rollout() for sample in group])
            learner.forward(batch)
        learner.step(rollout())
        results.append((gradients, sum(kept)))
    (plain, plain_kept), (checkpointed, checkpointed_kept) = results
    assert checkpointed_kept < plain_kept / 3
    for one, other in zip(plain, checkpointed, strict=True):
        assert difference(other, one) <= 1e-9


@pytest.mark.slow
def test_the_balance_loss_spreads_tokens_over_the_experts_alike_for_any_split_and_layout(moe_policy: Path):
    results = []
    for budget, packing in ((4096, True), (60, True), (4096, False), (60, False)):
        options = replace(
            config(microbatch_tokens=budget, packing=packing, max_grad_norm=1e9), balance_coefficient=10.0
        )
        learner = learner_in_float64(options, moe_policy)
        gradients = watch_gradients(learner)
        metrics = learner.step(rollout()).metrics
        results.append((gradients[0], metrics["policy/expert_imbalance"]))
    assert 1 < results[0][1] <= 8 / 2
    for gradient, imbalance in results[1:]:
        assert difference(gradient, results[0][0]) <= 1e-6
        assert imbalance == pytest.approx(results[0][1], rel=1e-6)
    before, *_, after = (learner.step(rollout()).metrics["policy/expert_imbalance"] for _ in range(4))
    assert after < before


def test_a_balance_loss_without_experts_is_refused(dense_policy: Path):
    with pytest.raises(ValueError, match=r"balance_coefficient = 0\.1, but unused has no experts"):
        Learner(replace(config(), balance_coefficient=0.1), dense_policy)


def with_engines_experts(groups: list[list[Sample]], engine: Learner) -> list[list[Sample]]:
    """The same samples, as if an engine of these weights had sampled them and told its experts."""

    def told(sample: Sample) -> Sample:
        [batch] = engine.make_microbatches([sample])
        with engine.routing.record() as recorded, torch.no_grad():
            engine.forward(batch)
        experts = recorded[0].transpose(0, 1).numpy().astype(np.uint8)
        experts[-1] = unknown_expert(1)  # no engine's forward pass sees the last token
        return replace(sample, routed_experts=[(0, experts)])

    return [[told(sample) for sample in group] for group in groups]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_the_engines_experts_are_replayed_in_every_pass(moe_policy: Path, packing: bool):
    options = config(num_minibatches=2, microbatch_tokens=100, packing=packing, learning_rate=1e-8)
    options = replace(options, learner=replace(options.learner, routing_replay="R3"))
    engine = Learner(options, moe_policy)
    with torch.no_grad():
        for router in engine.routing.routers:
            noise = torch.randn(router.weight.shape, generator=torch.Generator().manual_seed(0))
            router.weight += 0.1 * router.weight.std() * noise
    groups = with_engines_experts(rollout(), engine)
    samples = [sample for group in groups for sample in group]
    tokens = {sample.token_ids.tobytes(): sample.routed_experts[0][1] for sample in samples}

    learner = Learner(options, moe_policy)
    for batch in learner.make_microbatches(samples):
        [old] = learner.old_policy([batch])
        with learner.routing.record() as recorded, learner.routing.replay(learner._experts(batch, None)):
            learner.forward(batch)
        own_NKk = recorded[0].transpose(0, 1)
        real_BL = real_tokens(batch.lengths_B, batch.tokens_BL.shape[1])
        told = torch.cat(
            [
                torch.from_numpy(tokens[row[:n].numpy().astype("int32").tobytes()])
                for row, n in zip(batch.tokens_BL, batch.lengths_B.tolist(), strict=True)
            ]
        )
        known = told != unknown_expert(1)
        own = own_NKk if packing else own_NKk[real_BL.flatten()]  # what it would have chosen itself
        assert not torch.equal(own[known].to(torch.uint8), told[known])
        with learner.routing.replay(learner._experts(batch, None)):
            assert torch.equal(learner.forward(batch)[0], old.logprobs_BT)
    metrics = learner.step(groups).metrics
    assert 0.5 < metrics["policy/routing_agreement"] < 1

    same = Learner(options, moe_policy)  # an engine of the learner's own weights: nothing is forced upon it
    metrics = same.step(with_engines_experts(rollout(), Learner(options, moe_policy))).metrics
    assert metrics["policy/routing_agreement"] > 0.99


def test_replay_of_an_engine_that_tells_no_experts_is_refused(moe_policy: Path):
    options = replace(config(), learner=replace(config().learner, routing_replay="R3"))
    with pytest.raises(
        ValueError, match="prompt prompt-0: the engine returned no experts: use learner.routing_replay R2"
    ):
        Learner(options, moe_policy).step(rollout())
