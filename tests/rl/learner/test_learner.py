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

from policies.inputs import encode_images, encode_video
from policies.loading import load_policy, load_processor
from policies.small.qwen3_vl import TOKEN_IDS
from rl.config import OptimizerConfig, TrainConfig
from rl.learner import Learner
from rl.learner.optimizer import make_optimizer, make_scheduler
from rl.samples import Sample
from rollout.config import RolloutConfig
from tests.learning import PROCESSOR, config, difference, learner_in_float64, parameters, rollout, watch_gradients

CONTENT = pytest.mark.parametrize(
    "shown",
    [{"with_images": True}, {"with_images": False}, {"with_images": True, "with_videos": True}],
    ids=["images", "text", "videos and images"],
)


def updates_by_split(
    make: Callable[[TrainConfig, Path], Learner], folder: Path, num_splits: int, *, shown: dict[str, bool], **options
) -> list[tuple[list[Tensor], Tensor, dict[str, float]]]:
    """Gradients, new weights and metrics of one step, with one microbatch, with several, and with one per sequence."""
    groups = rollout(**shown)
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


@pytest.mark.slow
@CONTENT
def test_any_split_into_microbatches_gives_the_same_updates(policy: Path, shown: dict[str, bool]):
    one, other = updates_by_split(learner_in_float64, policy, 2, shown=shown, num_minibatches=2)
    assert one[2]["policy/ratio_max"] > 1.5  # the second update is off-policy
    assert difference(other[0][0], one[0][0]) <= 1e-7
    assert difference(other[0][1], one[0][1]) <= 2e-6  # AdamW turns what rounding leaves of a gradient of 0 into steps
    assert difference(other[1], one[1]) <= 1e-6
    assert other[2] == pytest.approx(one[2], rel=1e-5, abs=1e-7)


@pytest.mark.slow
@CONTENT
def test_any_split_into_microbatches_gives_the_same_update_up_to_rounding_in_float32(
    policy: Path, shown: dict[str, bool]
):
    one, *others = updates_by_split(Learner, policy, 3, shown=shown, learning_rate=1e-4)
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
def test_logprobs_are_those_of_the_whole_model_without_the_banned_tokens(policy: Path, shown: dict[str, bool]):
    groups = rollout(**shown, num_groups=2)
    learner = Learner(config(), policy)
    [batch] = learner.make_microbatches([sample for group in groups for sample in group])
    [old_BT] = learner.old_logprobs([batch])
    new_BT, entropies_N = learner.forward(batch)
    assert torch.equal(old_BT, new_BT.detach())
    assert not old_BT.requires_grad and new_BT.requires_grad

    model = load_policy(policy, dtype=torch.float32, device="cpu")
    for row, sample in zip(range(len(batch.tokens_BL)), in_order_of(batch.tokens_BL, groups), strict=True):
        tokens_1L = torch.tensor(sample.token_ids)[None].long()
        vision = as_transformers_has_it(sample)
        types = (tokens_1L == TOKEN_IDS["<|image_pad|>"]).int() + 2 * (tokens_1L == TOKEN_IDS["<|video_pad|>"]).int()
        with torch.no_grad():
            logits_LV = model(input_ids=tokens_1L, mm_token_type_ids=types, **vision).logits[0] / 1.2
        logits_LV[:, [259, 260, 261, 262]] = -torch.inf
        expected_T = logits_LV.log_softmax(1)[:-1].gather(1, tokens_1L[0, 1:, None])[:, 0]
        mask_T = torch.from_numpy(sample.loss_mask[1:])
        assert torch.allclose(old_BT[row, : len(mask_T)][mask_T], expected_T[mask_T], rtol=0, atol=1e-5)
    assert torch.equal(old_BT != 0, batch.mask_BT)
    assert len(entropies_N) == batch.mask_BT.sum()
    assert (entropies_N > 0).all() and (entropies_N <= math.log(263 - 4)).all()


def test_a_picture_that_stands_in_the_response_is_seen_from_there_on(dense_policy: Path):
    """As tools return them: siblings share the prompt's picture and go on with pictures of their own."""
    learner = Learner(config(), dense_policy)
    rng = np.random.default_rng(0)
    own = [Image.fromarray(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)) for _ in range(2)]
    observation = [TOKEN_IDS["<|vision_start|>"], *[TOKEN_IDS["<|image_pad|>"]] * 2, TOKEN_IDS["<|vision_end|>"]]
    group = []
    for sample, image in zip(rollout(num_groups=1)[0], own, strict=False):
        seen, answer = [*sample.token_ids, *observation], list(b"it is 7")
        length = len(seen) + len(answer)
        group.append(
            replace(
                sample,
                token_ids=np.array([*seen, *answer], np.int32),
                loss_mask=np.concatenate([sample.loss_mask, np.zeros(4, bool), np.ones(len(answer), bool)]),
                rollout_logprobs=np.zeros(length, np.float32),
                images=[*sample.images, image],
            )
        )
    [batch] = learner.make_microbatches(group)
    assert len(batch.vision.grid_U3) == 3 and batch.vision.image_order_N.tolist() == [0, 1, 2]
    [ours_BT] = learner.old_logprobs([batch])
    model = load_policy(dense_policy, dtype=torch.float32, device="cpu")
    for row, sample in enumerate(group):
        tokens_1L = torch.tensor(sample.token_ids)[None].long()
        types = (tokens_1L == TOKEN_IDS["<|image_pad|>"]).int()
        with torch.no_grad():
            logits_LV = model(input_ids=tokens_1L, mm_token_type_ids=types, **as_transformers_has_it(sample)).logits[0]
        logits_LV = logits_LV / 1.2
        logits_LV[:, [259, 260, 261, 262]] = -torch.inf
        expected_T = logits_LV.log_softmax(1)[:-1].gather(1, tokens_1L[0, 1:, None])[:, 0]
        mask_T = torch.from_numpy(sample.loss_mask[1:])
        assert torch.allclose(ours_BT[row, : len(mask_T)][mask_T], expected_T[mask_T], rtol=0, atol=1e-5)


def test_pixel_limits_hold_for_the_learner_and_stay_with_its_checkpoint(dense_policy: Path, tmp_path: Path):
    options = replace(config(), rollout=RolloutConfig(dtype="float32", max_image_pixels=32 * 32))
    learner = Learner(options, dense_policy)
    assert encode_images(learner.processor, [Image.new("RGB", (96, 96))])[0].grid == (1, 2, 2)
    learner.save(tmp_path)
    assert encode_images(load_processor(tmp_path), [Image.new("RGB", (96, 96))])[0].grid == (1, 2, 2)


def as_transformers_has_it(sample: Sample) -> dict[str, Tensor]:
    """A sample's images and videos as arguments of transformers' forward."""
    images = encode_images(PROCESSOR, sample.images)
    videos = [encode_video(PROCESSOR, video.frames) for video in sample.videos]
    inputs = {}
    for names, items in (
        (("pixel_values", "image_grid_thw"), images),
        (("pixel_values_videos", "video_grid_thw"), videos),
    ):
        if items:
            inputs[names[0]] = torch.cat([item.pixels for item in items])
            inputs[names[1]] = torch.tensor([item.grid for item in items])
    return inputs


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
    """A vision tower that returns NaN: prompts with images have no finite gradient, those of text are as before."""
    patches = learner.model.get_submodule("model.visual.patch_embed")
    patches.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    return learner


def with_images_in(number: int) -> list[list[Sample]]:
    """Four groups of which one has images."""
    return [rollout(with_images=g == number)[g] for g in range(4)]


def test_update_without_a_finite_gradient_is_skipped_counted_and_named(dense_policy: Path, caplog):
    learner = blind(Learner(config(), dense_policy))
    before = parameters(learner)
    with caplog.at_level(logging.WARNING, logger="rl.learner.learner"):
        report = learner.step(with_images_in(2))
    assert report.metrics["policy/skipped_updates"] == 1.0
    assert report.metrics["policy/grad_norm"] == 0.0
    assert report.num_updates == 0
    [message] = [record.message for record in caplog.records if record.name == "rl.learner.learner"]
    layer = "the output of model.visual.patch_embed"
    assert message.startswith(f"update skipped: the gradient is not finite, first {layer}; prompts with")
    assert message.count("prompt-2") == message.count("prompt-") == 3
    assert all(torch.equal(before[name], weight) for name, weight in parameters(learner).items())
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
