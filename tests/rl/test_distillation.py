"""On-policy distillation against the analytic gradient of the reverse KL, numbers worked by hand, and a learner that follows a
teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.small.qwen3_vl import save_small_policy
from rewards import Score
from rl.config import TeacherConfig, TrainConfig
from rl.distillation import token_advantages
from rl.learner import Learner
from rl.metrics import teacher_metrics
from rl.objectives import OBJECTIVES, policy_gradient_loss
from rl.samples import Sample, make_samples
from rl.sapo import sapo_loss
from rollout.types import Completion, Group, Prompt, Turn
from tests.learning import config, difference, parameters, rollout, watch_gradients

ALONE = TeacherConfig(model="teacher")
STUDENT = torch.tensor([0.5, -0.3, 1.1, 0.0], dtype=torch.float64)
TEACHER = torch.tensor([1.5, 0.2, -0.7, 0.1], dtype=torch.float64).log_softmax(0)
OLD = torch.tensor([0.1, 0.4, 0.6, -0.9], dtype=torch.float64).log_softmax(0)


def test_a_tokens_advantage_is_the_teachers_logprob_less_the_students():
    logprobs_BT = torch.tensor([[-1.0, -2.0], [-3.0, 5.0]], requires_grad=True)
    teacher_BT = torch.tensor([[-0.5, -4.0], [-3.0, -9.0]])
    mask_BT = torch.tensor([[True, True], [True, False]])
    advantages_B = torch.tensor([2.0, -1.0])

    def advantages(coefficient: float, reward_weight: float) -> list[list[float]]:
        chosen = replace(ALONE, coefficient=coefficient, reward_weight=reward_weight)
        told_BT = token_advantages(advantages_B, logprobs_BT, teacher_BT, mask_BT, chosen)
        assert not told_BT.requires_grad
        return told_BT.tolist()

    assert advantages(1.0, 0.0) == [[0.5, -2.0], [0.0, 0.0]]
    assert advantages(0.5, 3.0) == [[6.25, 5.0], [-3.0, 0.0]]


def kl_gradient(of: Tensor) -> Tensor:
    """∇_z KL(softmax z ‖ of), by autograd over the whole vocabulary."""
    z = STUDENT.clone().requires_grad_()
    logprobs = z.log_softmax(0)
    (logprobs.exp() * (logprobs - of)).sum().backward()
    return z.grad


def expected_gradient(objective, sampler: Tensor, advantage_from: Tensor | None = None) -> Tensor:
    """Σ_x μ(x) ∇loss(x) over all tokens x of the vocabulary, each as a response of its own; exact, no sampling."""
    z = STUDENT.clone().requires_grad_()
    total = z.new_zeros(())
    for token, log_mu in enumerate(sampler):
        logprobs_BT = z.log_softmax(0)[token][None, None]
        teacher_BT, mask_BT = TEACHER[token][None, None], torch.ones(1, 1, dtype=torch.bool)
        subtracted_BT = logprobs_BT if advantage_from is None else advantage_from[token][None, None]
        told_BT = token_advantages(torch.zeros(1), subtracted_BT, teacher_BT, mask_BT, ALONE)
        loss, _ = objective(logprobs_BT, log_mu[None, None], told_BT, mask_BT)
        total = total + log_mu.exp() * loss
    total.backward()
    return z.grad


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_on_policy_the_expected_gradient_of_every_objective_is_that_of_the_reverse_kl(name: str):
    gradient = expected_gradient(OBJECTIVES[name], STUDENT.log_softmax(0))
    assert torch.allclose(gradient, kl_gradient(TEACHER), rtol=0, atol=1e-12)


def test_of_stale_tokens_too_since_the_advantage_is_of_the_present_weights():
    gradient = expected_gradient(policy_gradient_loss, OLD)
    assert torch.allclose(gradient, kl_gradient(TEACHER), rtol=0, atol=1e-12)


def test_an_advantage_of_the_weights_that_sampled_would_push_away_from_them():
    gradient = expected_gradient(policy_gradient_loss, OLD, advantage_from=OLD)
    assert torch.allclose(gradient, kl_gradient(TEACHER) - kl_gradient(OLD), rtol=0, atol=1e-12)
    assert kl_gradient(OLD).abs().max() > 0.05


def test_the_sign_of_each_tokens_advantage_chooses_its_temperature():
    log_ratio = torch.full((1, 2), math.log(3.0), dtype=torch.float64).requires_grad_()
    told_BT = torch.tensor([[1.0, -1.0]])
    loss, _ = sapo_loss(log_ratio, torch.zeros(1, 2, dtype=torch.float64), told_BT, torch.ones(1, 2))
    loss.backward()
    # r · w(r) / |y| at r = 3: 1.2599 / 2 for τ = 1, 3 · 0.3888 / 2 for τ = 1.05
    assert log_ratio.grad[0].tolist() == pytest.approx([-0.62995, 0.5832], abs=1e-4)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_advantages_that_are_equal_over_a_sequence_are_those_of_the_sequence(name: str):
    generator = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(3, 4, dtype=torch.float64, generator=generator)
    new_BT = old_BT + 0.3 * torch.randn(3, 4, dtype=torch.float64, generator=generator)
    mask_BT = torch.arange(4) < torch.tensor([4, 2, 0])[:, None]
    advantages_B = torch.tensor([1.3, -0.7, 2.0], dtype=torch.float64)

    def run(advantages: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        logprobs_BT = new_BT.clone().requires_grad_()
        loss, metrics = OBJECTIVES[name](logprobs_BT, old_BT, advantages, mask_BT)
        loss.backward()
        return loss.detach(), metrics, logprobs_BT.grad

    of_tokens_BT = advantages_B[:, None].expand(3, 4).masked_fill(~mask_BT, torch.nan)
    (loss, metrics, gradient), (its_loss, its_metrics, its_gradient) = run(advantages_B), run(of_tokens_BT)
    assert torch.allclose(loss, its_loss, rtol=0, atol=1e-12)
    assert torch.allclose(gradient, its_gradient, rtol=0, atol=1e-12)
    for key, value in metrics.items():
        assert torch.allclose(value.double(), its_metrics[key].double(), rtol=0, atol=1e-12), key


def test_gspo_gives_each_token_its_own_advantage_and_the_ratio_of_the_response():
    # √(2 · 0.5) = 1: inside the clip. Gradient −s · A_t / |y|: not the mean of A for both.
    logprobs_BT = torch.tensor([[2.0, 0.5]], dtype=torch.float64).log().requires_grad_()
    loss, _ = OBJECTIVES["gspo"](logprobs_BT, torch.zeros(1, 2), torch.tensor([[3.0, -1.0]]), torch.ones(1, 2))
    loss.backward()
    assert loss.item() == pytest.approx(-1.0)
    assert logprobs_BT.grad[0].tolist() == pytest.approx([-1.5, 0.5])


def with_teacher(groups: Sequence[Sequence[Sample]], teacher: Learner) -> list[list[Sample]]:
    """The same samples, with a word of the teacher on each sampled token."""
    told = []
    for group in groups:
        told.append([])
        for sample in group:
            [batch] = teacher.make_microbatches([sample])
            [logprobs_BT] = teacher.old_logprobs([batch])
            teacher_L = np.concatenate([[0], logprobs_BT[0].numpy()]).astype(np.float32)
            told[-1].append(replace(sample, teacher_logprobs=teacher_L))
    return told


def distilling(**options: object) -> TrainConfig:
    return replace(config(**options), teacher=ALONE)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Learner:
    folder = save_small_policy(tmp_path_factory.mktemp("teacher") / "dense", kind="dense", seed=7)
    return Learner(config(), folder)


def test_a_student_that_is_its_teacher_has_advantages_of_0_and_does_not_move(dense_policy: Path):
    learner = Learner(distilling(), dense_policy)
    before = parameters(learner)
    groups = rollout()
    # As the learner itself lays the sequences out, so that not even rounding differs.
    [batch] = learner.make_microbatches([sample for group in groups for sample in group])
    [logprobs_BT] = learner.old_logprobs([batch])
    by_tokens = {tuple(t.tolist()): row for t, row in zip(batch.tokens_BL, logprobs_BT, strict=True)}
    told = []
    for group in groups:
        told.append([])
        for sample in group:
            length = len(sample.token_ids)
            padded = tuple(np.pad(sample.token_ids, (0, batch.tokens_BL.shape[1] - length)).tolist())
            teacher_L = np.concatenate([[0], by_tokens[padded].numpy()])[:length].astype(np.float32)
            told[-1].append(replace(sample, teacher_logprobs=teacher_L))
    report = learner.step(told)
    assert report.metrics["policy/grad_norm"] == 0.0 == report.metrics["loss/objective"]
    assert all(torch.equal(before[name], after) for name, after in parameters(learner).items())


def test_the_learners_gradient_is_the_one_worked_out_from_the_two_log_probabilities(dense_policy: Path, teacher):
    options = distilling(max_grad_norm=1e9)
    groups = with_teacher(rollout(), teacher)
    learner = Learner(options, dense_policy)
    gradients = watch_gradients(learner)
    learner.step(groups)

    by_hand = Learner(options, dense_policy)
    [batch] = by_hand.make_microbatches([sample for group in groups for sample in group])
    logprobs_BT, _ = by_hand.forward(batch)
    weight_BT = batch.teacher_logprobs_BT - logprobs_BT.detach()  # on policy a token's gradient is −A / (N |y|)
    means_B = (weight_BT * logprobs_BT * batch.mask_BT).sum(1) / batch.mask_BT.sum(1)
    (-means_B.mean()).backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in by_hand.model.parameters()]
    assert difference(gradients[0], torch.cat([part.flatten() for part in parts])) <= 1e-5


def test_the_gradient_does_not_depend_on_how_a_minibatch_is_cut_into_microbatches(dense_policy: Path, teacher):
    groups = with_teacher(rollout(), teacher)
    seen, metrics = [], []
    for options in ({}, {"microbatch_tokens": 64}, {"microbatch_tokens": 64, "packing": False}):
        learner = Learner(distilling(max_grad_norm=1e9, **options), dense_policy)
        gradients = watch_gradients(learner)
        metrics.append(learner.step(groups).metrics)
        seen.append(gradients[0])
    for gradient, its in zip(seen[1:], metrics[1:], strict=True):
        assert difference(gradient, seen[0]) <= 1e-5
        assert its["loss/objective"] == pytest.approx(metrics[0]["loss/objective"], abs=1e-5)


def test_rewards_have_a_say_where_they_have_a_weight(dense_policy: Path, teacher):
    groups = with_teacher(rollout(), teacher)

    def gradient(chosen: TeacherConfig | None) -> Tensor:
        options = config(max_grad_norm=1e9)
        its = groups if chosen else [[replace(s, teacher_logprobs=None) for s in group] for group in groups]
        learner = Learner(replace(options, teacher=chosen) if chosen else options, dense_policy)
        gradients = watch_gradients(learner)
        learner.step(its)
        return gradients[0]

    both = gradient(replace(ALONE, coefficient=0.5, reward_weight=2.0))
    # On policy an objective's gradient is linear in the advantages.
    assert difference(both, 0.5 * gradient(ALONE) + 2 * gradient(None)) <= 1e-5


def test_tokens_that_the_teacher_finds_likelier_become_likelier_than_the_others(dense_policy: Path, teacher):
    learner = Learner(distilling(learning_rate=1e-3), dense_policy)
    groups = with_teacher(rollout(), teacher)
    [batch] = learner.make_microbatches([sample for group in groups for sample in group])
    before = learner.old_logprobs([batch])[0]
    gap = (batch.teacher_logprobs_BT - before)[batch.mask_BT]
    for _ in range(3):
        learner.step(groups)
    after = learner.old_logprobs([batch])[0]
    moved = (after - before)[batch.mask_BT]
    assert moved[gap > gap.median()].mean() > moved[gap < gap.median()].mean() + 0.1


def group(task: str, *completions: Completion) -> Group:
    return Group(prompt=Prompt(id=task, messages=[], task=task), prompt_token_ids=np.arange(2), completions=completions)


def said(*logprobs: float, turns: Sequence[Turn] | None = None) -> Completion:
    return Completion(text="", token_ids=np.arange(len(logprobs)), logprobs=np.array(logprobs, np.float32), turns=turns)


def test_the_reverse_kl_is_the_mean_over_sampled_tokens_of_each_task():
    # Sampled at −1, −2 | −3, the teacher says −2, −2 | −1: 1, 0, −2. In the episode the middle token is the environment's.
    episode = said(-1.0, 0.0, -1.0, turns=[Turn(text="", start=0, stop=1), Turn(text="", start=2, stop=3)])
    groups = [group("sums", said(-1.0, -2.0), said(-3.0)), group("zoom", episode)]
    told = [
        [np.array([-2.0, -2.0]), np.array([-1.0])],
        [np.array([-2.0, -np.inf, -4.0])],
    ]
    assert teacher_metrics(groups, told) == pytest.approx(
        {"policy/teacher_kl": 3 / 5, "policy/teacher_kl/sums": -1 / 3, "policy/teacher_kl/zoom": 2.0}
    )
    assert teacher_metrics(groups[:1], told[:1]) == pytest.approx({"policy/teacher_kl": -1 / 3})
    assert teacher_metrics([group("sums", said())], [[np.zeros(0)]]) == {}


def test_the_teachers_word_stands_at_the_token_that_it_is_about():
    turns = [Turn(text="", start=0, stop=1), Turn(text="", start=2, stop=3)]
    groups = [group("a", said(-1.0, -1.0), said(-1.0, 0.0, -1.0, turns=turns))]
    told = [[np.array([-5.0, -6.0], np.float32), np.array([-7.0, -np.inf, -8.0], np.float32)]]
    [[first, second]] = make_samples(groups, [[Score(reward=1.0), Score(reward=0.0)]], teacher_logprobs=told)
    assert first.teacher_logprobs.tolist() == [0, 0, -5, -6]
    assert second.teacher_logprobs.tolist() == [0, 0, -7, 0, -8]
    assert first.teacher_logprobs.dtype == np.float32


def test_a_batch_in_which_some_tokens_have_no_teacher_is_refused_by_name(dense_policy: Path, teacher):
    groups = with_teacher(rollout(num_groups=1), teacher)
    groups[0][1] = replace(groups[0][1], teacher_logprobs=None)
    with pytest.raises(ValueError, match="^prompt prompt-0: the teacher's log-probabilities are missing"):
        teacher.make_microbatches(groups[0])
