"""The learner on small real policies, dense and MoE, with pictures and without."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from policies.inputs import encode_images, expand_image_tokens
from policies.loading import load_policy
from policies.lora import is_adapter
from policies.small import TOKEN_IDS, small_processor
from rewards.types import Score
from rl.batching import make_samples
from rl.config import CorrectionConfig, LearnerConfig, LoraConfig, OptimizerConfig, TrainConfig
from rl.learner import Learner, make_optimizer, make_scheduler
from rl.objectives import OBJECTIVES, kl_penalty
from rl.types import Sample
from rollout.config import RolloutConfig
from rollout.rendering import render
from rollout.types import Completion, Group, Prompt

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

PROCESSOR = small_processor()
CONTENT = pytest.mark.parametrize("with_images", [True, False], ids=["images", "text"])


def config(
    *, microbatch_tokens: int = 4096, dtype: str = "float32", num_minibatches: int = 1, **optimizer
) -> TrainConfig:
    return TrainConfig(
        model="unused",
        num_minibatches=num_minibatches,
        optimizer=OptimizerConfig(**{"learning_rate": 1e-3, "warmup_updates": 1} | optimizer),
        rollout=RolloutConfig(dtype="float32", temperature=1.2),
        learner=LearnerConfig(dtype=dtype, microbatch_tokens=microbatch_tokens),
    )


def rollout(*, with_images: bool = True, num_groups: int = 4, seed: int = 0) -> list[list[Sample]]:
    """What the loop hands to the learner: groups of 3, prompts and responses of different lengths, rewards 0 and 1."""
    rng = np.random.default_rng(seed)
    groups, scores = [], []
    for number in range(num_groups):
        groups.append(make_group(rng, number, with_images))
        scores.append([Score(reward=float(r)) for r in ([1, 0, 0], [1, 1, 0])[number % 2]])
    return make_samples(groups, scores)


def make_group(rng: np.random.Generator, number: int, with_images: bool) -> Group:
    images: list[Image.Image] = []
    if with_images:
        size = (32 * (1 + number % 2), 32 * (1 + number % 3), 3)
        images = [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(1 + number % 2)]
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": "sum?" * (1 + number)}]
    prompt = Prompt(id=f"prompt-{number}", messages=[{"role": "user", "content": content}], images=images)
    encoded = encode_images(PROCESSOR, images)
    grid_N3 = np.zeros((0, 3), np.int64) if encoded is None else encoded.grid_N3.numpy()
    token_ids = expand_image_tokens(render(PROCESSOR, prompt), grid_N3, TOKEN_IDS["<|image_pad|>"], 2)
    lengths = rng.integers(1, 9, 3)
    completions = [
        Completion(text="", token_ids=rng.integers(0, 256, n).astype(np.int32), logprobs=-np.ones(n, np.float32))
        for n in lengths
    ]
    return Group(prompt=prompt, prompt_token_ids=token_ids, completions=completions)


def parameters(learner: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}


def watch_gradients(learner: Learner) -> list[Tensor]:
    """Every gradient that the optimizer is given, as one long vector; zeros where there is none."""
    seen: list[Tensor] = []

    def remember(*_) -> None:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.model.parameters()]
        seen.append(torch.cat([part.flatten() for part in parts]))

    learner.optimizer.register_step_pre_hook(remember)
    return seen


def difference(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    return ((ours - theirs).double().norm() / theirs.double().norm()).item()


def learner_in_float64(options: TrainConfig, folder: Path) -> Learner:
    """All but the logits in double precision: what is left of rounding does not hide a wrong denominator."""
    learner = Learner(options, folder)
    learner.model.double().set_experts_implementation("eager")
    learner.optimizer = make_optimizer(learner.model, options.optimizer)
    learner.scheduler = make_scheduler(learner.optimizer, options.optimizer)
    return learner


def updates_by_split(
    make: Callable[[TrainConfig, Path], Learner], folder: Path, num_splits: int, *, with_images: bool, **options
) -> list[tuple[list[Tensor], Tensor, dict[str, float]]]:
    """Gradients, new weights and metrics of one step, with one microbatch, with several, and with one per sequence."""
    groups = rollout(with_images=with_images)
    samples = [sample for group in groups for sample in group]
    longest = max(len(sample.token_ids) for sample in samples)
    results, num_microbatches = [], []
    for budget in (4096, 3 * longest, longest)[:num_splits]:
        learner = make(config(microbatch_tokens=budget, **options), folder)
        num_microbatches.append(len(learner.make_microbatches(samples)))
        gradients = watch_gradients(learner)
        metrics = learner.step(groups).metrics
        metrics = {name: value for name, value in metrics.items() if not name.startswith(("time/", "memory/"))}
        results.append((gradients, torch.cat([p.flatten() for p in parameters(learner).values()]), metrics))
    assert num_microbatches[0] == 1
    assert sorted(set(num_microbatches)) == num_microbatches
    return results


@CONTENT
def test_any_split_into_microbatches_gives_the_same_updates(policy: Path, with_images: bool):
    one, other = updates_by_split(learner_in_float64, policy, 2, with_images=with_images, num_minibatches=2)
    assert one[2]["policy/ratio_max"] > 1.5  # the second update is off-policy
    assert difference(other[0][0], one[0][0]) <= 1e-7
    assert difference(other[0][1], one[0][1]) <= 2e-6  # AdamW turns what rounding leaves of a gradient of 0 into steps
    assert difference(other[1], one[1]) <= 1e-6
    assert other[2] == pytest.approx(one[2], rel=1e-5, abs=1e-7)


@CONTENT
def test_any_split_into_microbatches_gives_the_same_update_up_to_rounding_in_float32(policy: Path, with_images: bool):
    one, *others = updates_by_split(Learner, policy, 3, with_images=with_images, learning_rate=1e-4)
    for gradients, weights, metrics in others:
        assert difference(weights, one[1]) <= 1e-6
        assert difference(gradients[0], one[0][0]) <= 3e-6  # 2⁻²⁴ = 6e-8 through a dozen layers
        assert metrics == pytest.approx(one[2], rel=1e-5, abs=1e-6)


def test_first_minibatch_is_on_policy_to_the_last_bit(policy: Path):
    metrics = Learner(config(microbatch_tokens=60), policy).step(rollout()).metrics
    names = ("ratio_mean", "ratio_min", "ratio_max", "gate_mean", "gate_below_half", "log_ratio_variance")
    assert [metrics[f"policy/{name}"] for name in names] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_loss_on_policy_is_the_value_worked_by_hand(dense_policy: Path):
    metrics = Learner(config(), dense_policy).step(rollout()).metrics
    # Pass rates 1/3 and 2/3: the mean of −2/τ · A is −½ · (2 − 2/1.05) · 2 · √(1/3 · 2/3) in both kinds of groups.
    assert metrics["loss/objective"] == pytest.approx(-(2 - 2 / 1.05) * math.sqrt(2 / 9), abs=1e-6)


def test_second_minibatch_is_weighed_by_its_ratios_to_the_policy_that_sampled(dense_policy: Path):
    options = config(num_minibatches=2, learning_rate=3e-3, max_grad_norm=1e9)
    groups = rollout()
    learner = Learner(options, dense_policy)
    gradients = watch_gradients(learner)
    learner.step(groups)

    second_half = [sample for group in groups[2:] for sample in group]
    by_hand = Learner(replace(options, num_minibatches=1), dense_policy)
    [batch] = by_hand.make_microbatches(second_half)
    [old_BT] = by_hand.old_logprobs([batch])
    by_hand.step(groups[:2])
    new_BT, _ = by_hand.forward(batch)
    ratio_BT = (new_BT - old_BT).exp().detach()
    assert ratio_BT.max() > 1.2
    advantages_B1 = batch.advantages_B[:, None]
    tau_B1 = torch.where(advantages_B1 > 0, 1.0, 1.05)
    weight_BT = advantages_B1 * ratio_BT / torch.cosh(tau_B1 * (ratio_BT - 1) / 2) ** 2
    means_B = (weight_BT * new_BT * batch.mask_BT).sum(1) / batch.mask_BT.sum(1)
    (-means_B.mean()).backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in by_hand.model.parameters()]
    assert difference(gradients[1], torch.cat([part.flatten() for part in parts])) <= 1e-5


def test_gap_to_the_engine_is_measured_over_every_response_token(dense_policy: Path):
    learner = Learner(config(num_minibatches=2), dense_policy)
    groups = rollout()
    batches = [learner.make_microbatches(group) for group in groups]
    shifted = []
    for shift, group, [batch] in zip([0.5, -0.25, 0.25, 0.0], groups, batches, strict=True):
        [logprobs_BT] = learner.old_logprobs([batch])
        by_tokens = {tuple(t.tolist()): row for t, row in zip(batch.tokens_BL, logprobs_BT, strict=True)}
        shifted.append([])
        for sample in group:
            padded = tuple(np.pad(sample.token_ids, (0, batch.tokens_BL.shape[1] - len(sample.token_ids))).tolist())
            logprobs = np.concatenate([[0], by_tokens[padded].numpy()])[: len(sample.token_ids)]
            shifted[-1].append(
                replace(sample, rollout_logprobs=(logprobs + shift * sample.loss_mask).astype(np.float32))
            )
    metrics = learner.step(shifted).metrics
    counts = [sum(sample.loss_mask.sum() for sample in group) for group in groups]
    expected = (0.5 * counts[0] + 0.25 * counts[1] + 0.25 * counts[2]) / sum(counts)
    assert metrics["rollout/logprob_gap_mean"] == pytest.approx(expected, abs=1e-5)
    assert metrics["rollout/logprob_gap_max"] == pytest.approx(0.5, abs=1e-5)


@CONTENT
def test_logprobs_are_those_of_the_whole_model_without_the_banned_tokens(policy: Path, with_images: bool):
    groups = rollout(with_images=with_images, num_groups=2)
    learner = Learner(config(), policy)
    [batch] = learner.make_microbatches([sample for group in groups for sample in group])
    [old_BT] = learner.old_logprobs([batch])
    new_BT, entropies_N = learner.forward(batch)
    assert torch.equal(old_BT, new_BT.detach())
    assert not old_BT.requires_grad and new_BT.requires_grad

    model = load_policy(policy, dtype=torch.float32, device="cpu")
    for row, sample in zip(range(len(batch.tokens_BL)), in_order_of(batch.tokens_BL, groups), strict=True):
        tokens_1L = torch.tensor(sample.token_ids)[None].long()
        encoded = encode_images(PROCESSOR, sample.images)
        vision = {} if encoded is None else {"pixel_values": encoded.pixels, "image_grid_thw": encoded.grid_N3}
        types = (tokens_1L == TOKEN_IDS["<|image_pad|>"]).int()
        with torch.no_grad():
            logits_LV = model(input_ids=tokens_1L, mm_token_type_ids=types, **vision).logits[0] / 1.2
        logits_LV[:, [259, 260, 261, 262]] = -torch.inf
        expected_T = logits_LV.log_softmax(1)[:-1].gather(1, tokens_1L[0, 1:, None])[:, 0]
        mask_T = torch.from_numpy(sample.loss_mask[1:])
        assert torch.allclose(old_BT[row, : len(mask_T)][mask_T], expected_T[mask_T], rtol=0, atol=1e-5)
    assert torch.equal(old_BT != 0, batch.mask_BT)
    assert len(entropies_N) == batch.mask_BT.sum()
    assert (entropies_N > 0).all() and (entropies_N <= math.log(263 - 4)).all()


def in_order_of(tokens_BL: Tensor, groups: Sequence[Sequence[Sample]]) -> list[Sample]:
    samples = [sample for group in groups for sample in group]
    return [
        next(
            s
            for s in samples
            if row[: len(s.token_ids)].tolist() == s.token_ids.tolist() and not row[len(s.token_ids) :].any()
        )
        for row in tokens_BL
    ]


def test_prompts_whose_rewards_are_equal_change_nothing(dense_policy: Path):
    learner = Learner(config(), dense_policy)
    before = parameters(learner)
    report = learner.step([[replace(sample, advantage=0.0) for sample in group] for group in rollout()])
    assert report.metrics["policy/grad_norm"] == report.metrics["loss/objective"] == 0.0
    assert all(torch.equal(before[name], after) for name, after in parameters(learner).items())


def test_a_step_without_any_sample_updates_nothing(dense_policy: Path):
    report = Learner(config(), dense_policy).step([[], []])
    assert report.num_updates == 0


def test_gradient_is_clipped_to_the_global_norm_and_reported_unclipped(dense_policy: Path):
    learner = Learner(config(max_grad_norm=1e-3), dense_policy)
    gradients = watch_gradients(learner)
    norm = learner.step(rollout()).metrics["policy/grad_norm"]
    assert norm > 1e-2
    assert gradients[0].norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate_rises_over_the_warm_up_and_stays(dense_policy: Path):
    learner = Learner(config(num_minibatches=2, learning_rate=1e-3, warmup_updates=4), dense_policy)
    rates = [learner.step(rollout(num_groups=2)).metrics["policy/learning_rate"] for _ in range(3)]
    # Updates take 1/4, 2/4 | 3/4, 4/4 | 1, 1 of the peak; a step reports the mean of its two.
    assert rates == pytest.approx([0.375e-3, 0.875e-3, 1e-3])


def test_matrices_decay_and_vectors_do_not():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    optimizer = make_optimizer(module, OptimizerConfig(weight_decay=0.1, warmup_updates=0))
    assert [[p.dim() for p in group["params"]] for group in optimizer.param_groups] == [[2], [1, 1, 1]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert make_scheduler(optimizer, OptimizerConfig(learning_rate=2e-6, warmup_updates=0)).get_last_lr() == [
        1e-6,
        1e-6,
    ]


def blind(learner: Learner) -> Learner:
    """A vision tower that has gone to NaN: prompts with images have no finite gradient, those of text are as before."""
    with torch.no_grad():
        learner.model.get_parameter("model.visual.patch_embed.proj.bias").fill_(torch.nan)
    return learner


def with_images_in(number: int) -> list[list[Sample]]:
    """Four groups of which one has images."""
    return [rollout(with_images=g == number)[g] for g in range(4)]


def test_update_without_a_finite_gradient_is_skipped_counted_and_named(dense_policy: Path, caplog):
    learner = blind(Learner(config(), dense_policy))
    before = parameters(learner)
    with caplog.at_level(logging.WARNING, logger="rl.learner"):
        report = learner.step(with_images_in(2))
    assert report.metrics["policy/skipped_updates"] == 1.0
    assert report.metrics["policy/grad_norm"] == 0.0
    assert report.num_updates == 0
    [message] = [record.message for record in caplog.records if record.name == "rl.learner"]
    assert message.startswith("update skipped: the gradient is not finite")
    assert message.count("prompt-2") == message.count("prompt-") == 3
    assert all(torch.allclose(before[n], w, rtol=0, atol=0, equal_nan=True) for n, w in parameters(learner).items())
    assert {state["step"].item() for state in learner.optimizer.state.values()} == {0.0}
    assert learner.scheduler.last_epoch == 0


def test_one_bad_minibatch_of_two_costs_one_update(dense_policy: Path):
    learner = blind(Learner(config(num_minibatches=2), dense_policy))
    report = learner.step(with_images_in(0))
    assert (report.num_updates, report.metrics["policy/skipped_updates"]) == (1, 0.5)


def test_three_skipped_updates_in_a_row_stop_the_run_and_a_good_one_in_between_does_not(dense_policy: Path):
    learner = blind(Learner(config(learning_rate=1e-5), dense_policy))
    good, bad = rollout(num_groups=1, with_images=False), rollout(num_groups=1)
    for groups in (bad, bad, good, bad, bad):
        learner.step(groups)
    with pytest.raises(
        FloatingPointError, match=r"^3 updates in a row had no finite gradient \(learning_rate 1e-05\): lower"
    ):
        learner.step(bad)


@CONTENT
def test_saved_and_loaded_learner_goes_on_as_if_nothing_had_happened(policy: Path, with_images: bool, tmp_path: Path):
    options = config(num_minibatches=2, warmup_updates=6, weight_decay=0.01)
    steps = [rollout(with_images=with_images, seed=seed) for seed in range(4)]
    uninterrupted = Learner(options, policy)
    expected = [uninterrupted.step(groups).metrics for groups in steps]

    interrupted = Learner(options, policy)
    for groups in steps[:2]:
        interrupted.step(groups)
    interrupted.save(tmp_path / "step_2")
    draw = torch.rand(3)
    resumed = Learner(options, tmp_path / "step_2")
    resumed.load(tmp_path / "step_2")
    assert torch.equal(torch.rand(3), draw)
    got = [resumed.step(groups).metrics for groups in steps[2:]]

    ours, theirs = parameters(resumed), parameters(uninterrupted)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    for a, b in zip(got, expected[2:], strict=True):
        assert {n: v for n, v in a.items() if not n.startswith(("time/", "memory/"))} == {
            n: v for n, v in b.items() if not n.startswith(("time/", "memory/"))
        }


def test_a_policy_that_learnt_from_text_goes_on_with_images(dense_policy: Path, tmp_path: Path):
    learner = Learner(config(), dense_policy)
    learner.step(rollout(with_images=False))
    learner.save(tmp_path)
    resumed = Learner(config(), tmp_path)
    resumed.load(tmp_path)
    for each in (learner, resumed):
        each.step(rollout(with_images=True))
    assert all(
        torch.equal(a, b) for a, b in zip(parameters(learner).values(), parameters(resumed).values(), strict=True)
    )


def test_saving_does_not_change_what_follows(dense_policy: Path, tmp_path: Path):
    def run(between: Callable[[Learner], object]) -> dict[str, Tensor]:
        learner = Learner(config(), dense_policy)
        between(learner)
        learner.step(rollout(num_groups=1))
        return parameters(learner)

    saved, not_saved = run(lambda learner: learner.save(tmp_path)), run(lambda learner: None)
    assert all(torch.equal(saved[name], weight) for name, weight in not_saved.items())


def test_bfloat16_learner_keeps_float32_weights_and_learns(policy: Path):
    learner, exact = (Learner(config(dtype=dtype), policy) for dtype in ("bfloat16", "float32"))
    groups = rollout()
    [batch] = learner.make_microbatches([sample for group in groups for sample in group])
    gap = (learner.old_logprobs([batch])[0] - exact.old_logprobs([batch])[0]).abs()
    assert 0 < gap.max() < 0.1
    before = parameters(learner)
    report = learner.step(groups)
    assert all(math.isfinite(value) for value in report.metrics.values())
    after = parameters(learner)
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_the_learning_rate_rises_then_falls_to_a_tenth_and_stays():
    optimizer = make_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(learning_rate=1.0))
    scheduler = make_scheduler(optimizer, OptimizerConfig(learning_rate=1.0, warmup_updates=4, decay_updates=10))
    rates = []
    for _ in range(13):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # Up by quarters; from the fourth on 1 − 0.09 n, which the rise has reached by then.
    expected = [0.25, 0.5, 0.75, 0.73, 0.64, 0.55, 0.46, 0.37, 0.28, 0.19, 0.1, 0.1, 0.1]
    assert rates == pytest.approx(expected)


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
    assert learner.routing.take_agreement() == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stale_minibatch_goes_through_the_experts_of_the_old_policy(moe_policy: Path, dtype: str):
    learner, groups, batches, old = stale_moe(moe_policy, "R2", dtype)
    learner.step(groups[:2])
    learner.routing.take_agreement()
    for batch, its in zip(batches, old, strict=True):
        seen_N = (its.experts_KNk != -1).all(2)[0]
        with torch.no_grad(), learner.routing.record() as free:
            learner.forward(batch)
        taken = []
        for layer, router in enumerate(learner.routing.routers):  # what the experts are really called with
            block = learner.model.model.language_model.layers[layer].mlp
            assert block.gate is router
            block.experts.register_forward_pre_hook(lambda _, args: taken.append(args[1].clone()))
        with torch.no_grad(), learner.routing.replay(its.experts_KNk):
            learner.forward(batch)
        assert torch.equal(torch.stack(taken)[:, seen_N].short(), its.experts_KNk[:, seen_N])  # 100 %
        assert not torch.equal(free[0][:, seen_N], its.experts_KNk[:, seen_N])  # and it would have chosen otherwise
        for layer in range(len(learner.routing.routers)):
            learner.model.model.language_model.layers[layer].mlp.experts._forward_pre_hooks.clear()
    assert learner.routing.take_agreement() < 1


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

    optimizer = make_optimizer(Policy(), OptimizerConfig(learning_rate=1e-3, vision_learning_rate=1e-4, weight_decay=0.1))
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
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            [batch] = learner.make_microbatches([sample for group in rollout() for sample in group])
            learner.forward(batch)
        learner.step(rollout())
        results.append((gradients, sum(kept)))
    (plain, plain_kept), (checkpointed, checkpointed_kept) = results
    assert checkpointed_kept < plain_kept / 3
    for one, other in zip(plain, checkpointed, strict=True):
        assert difference(other, one) <= 1e-9
