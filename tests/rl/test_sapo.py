"""The objective against its closed form: gradient −A·r·sech²(τ(r − 1)/2) / (N·|y|), and numbers worked by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl.sapo import MAX_LOG_RATIO, gate_weight, sapo_loss
from tests.losses import value_and_gradient

INF, NAN = float("inf"), float("nan")

RATIOS = [0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0]
W_TAU_1 = [0.7864, 0.9400, 0.9901, 1.0, 0.9901, 0.9400, 0.7864, 0.4200, 0.0707]
W_TAU_105 = [0.7681, 0.9341, 0.9891, 1.0, 0.9891, 0.9341, 0.7681, 0.3888, 0.0582]
WR_TAU_1 = [0.0, 0.4700, 0.7921, 1.0, 1.1881, 1.4100, 1.5729, 1.2599, 0.3533]

ROUNDED = 5.1e-5
"""The published table has four digits."""


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(log_ratio: object, advantages: object, mask: object = None, **options: float) -> Tensor:
    """∂loss/∂logprobs where logprobs − old_logprobs = log_ratio, in float64."""
    log_ratio_BT = double(log_ratio)
    old_BT = torch.full_like(log_ratio_BT, -2.0)
    logprobs_BT = (old_BT + log_ratio_BT).requires_grad_()
    mask_BT = torch.ones_like(log_ratio_BT) if mask is None else torch.tensor(mask)
    loss, _ = sapo_loss(logprobs_BT, old_BT, double(advantages), mask_BT, **options)
    loss.backward()
    assert logprobs_BT.grad is not None
    return logprobs_BT.grad


def weight_times_ratio(ratio: float, tau: float) -> float:
    """w · r: what autograd makes of a single token of advantage −1, whose gradient is +w · r."""
    return gradient([[math.log(ratio)]], [-1.0], tau_neg=tau).item()


@pytest.mark.parametrize(("tau", "table"), [(1.0, W_TAU_1), (1.05, W_TAU_105)])
def test_gradient_of_one_token_follows_the_table_of_weights(tau: float, table: list[float]):
    by_autograd = [weight_times_ratio(ratio, tau) / ratio for ratio in RATIOS[1:]]
    assert by_autograd == pytest.approx(table[1:], abs=ROUNDED)
    assert [gate_weight(ratio, tau) for ratio in RATIOS] == pytest.approx(table, abs=ROUNDED)


def test_gradient_of_one_token_follows_the_table_of_weight_times_ratio():
    assert [weight_times_ratio(ratio, 1.0) for ratio in RATIOS[1:]] == pytest.approx(WR_TAU_1[1:], abs=ROUNDED)
    assert weight_times_ratio(1e-8, 1.0) == pytest.approx(
        0.7864e-8, rel=1e-4
    )  # towards r = 0 the weight stays, w · r goes


@pytest.mark.parametrize(("tau", "best_ratio", "largest"), [(1.0, 2.060, 1.5747), (1.05, 1.992, 1.5363)])
def test_a_token_pulls_hardest_at_about_twice_its_old_probability(tau: float, best_ratio: float, largest: float):
    ratios = np.arange(1.5, 2.5, 0.001)
    old_BT = torch.zeros(len(ratios), 1, dtype=torch.float64)
    logprobs_BT = double(ratios).log()[:, None].requires_grad_()
    loss, _ = sapo_loss(
        logprobs_BT, old_BT, -torch.ones(len(ratios)), torch.ones_like(old_BT), tau_neg=tau, num_sequences=1
    )
    loss.backward()
    pull = logprobs_BT.grad[:, 0].numpy()
    assert ratios[pull.argmax()] == pytest.approx(best_ratio, abs=0.0015)
    assert pull.max() == pytest.approx(largest, abs=ROUNDED)


@pytest.mark.parametrize("tau", [1.0, 18.0, 60.0])
def test_the_gate_is_a_half_and_a_tenth_where_the_documentation_says(tau: float):
    # sech²(x) = ½ and 1/10 at x = arcosh √2 = .8814 and arcosh √10 = 1.8184: distances of 1.763/τ and 3.637/τ from 1.
    ratios = [1 + 1.7627 / tau, 1 + 3.6369 / tau]
    _, [gradient] = value_and_gradient(sapo_loss, [ratios], [1.0], tau_pos=tau)
    gates = [-2 * slope / ratio for slope, ratio in zip(gradient, ratios, strict=True)]
    assert gates == pytest.approx([0.5, 0.1], abs=1e-4)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 1.05, 3.0, 20.0])
def test_on_policy_gradient_is_minus_advantage_for_every_temperature(tau: float):
    mask = [[True, True, True, True], [True, True, False, False]]
    grad = gradient(torch.zeros(2, 4).tolist(), [1.5, -0.5], mask, tau_pos=tau, tau_neg=tau)
    # −A / (N |y|): −1.5 / (2·4) and 0.5 / (2·2)
    expected = [[-0.1875] * 4, [0.125, 0.125, 0.0, 0.0]]
    assert torch.allclose(grad, double(expected), rtol=0, atol=1e-15)


def test_positive_advantages_take_tau_pos_and_negative_ones_tau_neg():
    grad = gradient([[math.log(3.0)], [math.log(3.0)]], [1.0, -1.0], num_sequences=1)
    assert grad[:, 0].tolist() == pytest.approx([-3 * 0.4200, 3 * 0.3888], abs=3 * ROUNDED)


def test_loss_on_policy_is_the_mean_of_minus_two_over_tau_times_the_advantage():
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    loss, _ = sapo_loss(zeros, zeros, double([1.0, -1.0]), torch.ones(2, 3))
    # f(1) = σ(0) · 4/τ = 2/τ: −1/2 · (2/1 · 1 − 2/1.05 · 1)
    assert loss.item() == pytest.approx(-0.0476190476, abs=1e-9)


@pytest.mark.parametrize(("num_right", "expected"), [(1, -0.0952 * math.sqrt(0.25 * 0.75)), (2, -0.0952 * 0.5)])
def test_loss_on_policy_of_a_group_with_binary_rewards_is_slightly_negative(num_right: int, expected: float):
    rewards = double([1.0] * num_right + [0.0] * (4 - num_right))
    advantages = (rewards - rewards.mean()) / rewards.std(correction=0)
    zeros = torch.zeros(4, 2, dtype=torch.float64)
    assert sapo_loss(zeros, zeros, advantages, torch.ones(4, 2))[0].item() == pytest.approx(expected, abs=ROUNDED)


def test_loss_off_policy_has_the_value_worked_by_hand():
    # r = 2: 4 · σ(1) = 2.924234 for A = 1; r = 1/2, τ = 1.05: 4/1.05 · σ(−0.525) = 1.415939 for A = −1
    old = torch.zeros(2, 1, dtype=torch.float64)
    loss, _ = sapo_loss(double([[math.log(2)], [-math.log(2)]]), old, double([1.0, -1.0]), torch.ones(2, 1))
    assert loss.item() == pytest.approx(-(2.924234 - 1.415939) / 2, abs=1e-6)
    assert loss.item() == pytest.approx(-(4 / (1 + math.exp(-1)) - 4 / 1.05 / (1 + math.exp(0.525))) / 2, abs=1e-12)


def test_zero_advantage_contributes_exactly_nothing():
    log_ratio = double([[3.0, -40.0], [0.5, 50.0]]).requires_grad_()
    loss, _ = sapo_loss(log_ratio, torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2), torch.ones(2, 2))
    loss.backward()
    assert loss.item() == 0.0
    assert log_ratio.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("outside", [INF, -INF, NAN, 1e30])
@pytest.mark.parametrize("side", ["new", "old", "both"])
def test_whatever_lies_outside_the_mask_changes_nothing(outside: float, side: str):
    old = torch.full((2, 3), -2.0)
    new = old + torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    advantages = torch.tensor([1.0, -2.0])
    clean_loss, clean_metrics = sapo_loss(new, old, advantages, mask)
    dirty_new = (new if side == "old" else new.masked_fill(~mask, outside)).clone().requires_grad_()
    dirty_old = old if side == "new" else old.masked_fill(~mask, outside)
    loss, metrics = sapo_loss(dirty_new, dirty_old, advantages, mask)
    loss.backward()
    assert loss.item() == clean_loss.item()
    assert metrics == clean_metrics
    assert dirty_new.grad.isfinite().all()
    assert torch.equal(dirty_new.grad != 0, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("log_ratio", [15.0, 25.0, 100.0, 1e4, -25.0, -1e4])
def test_overflowing_ratio_is_finite_and_has_no_gradient(log_ratio: float, dtype: torch.dtype):
    new = torch.tensor([[log_ratio, 0.0]], dtype=dtype, requires_grad=True)
    for advantage in (1.0, -1.0):
        loss, metrics = sapo_loss(new, torch.zeros(1, 2, dtype=dtype), torch.tensor([advantage]), torch.ones(1, 2))
        (grad,) = torch.autograd.grad(loss, new)
        assert loss.isfinite()
        assert all(value.isfinite() for value in metrics.values())
        assert grad.tolist() == [[0.0, -advantage / 2]]


def test_log_ratio_is_bounded_where_its_exponential_is_still_finite():
    assert MAX_LOG_RATIO == 20.0
    assert math.exp(MAX_LOG_RATIO) < torch.finfo(torch.float32).max


def test_gate_of_half_precision_log_probabilities_is_computed_in_float32():
    new = torch.tensor([[-1.0]], dtype=torch.bfloat16, requires_grad=True)
    loss, _ = sapo_loss(new, torch.tensor([[-2.75]], dtype=torch.bfloat16), torch.ones(1), torch.ones(1, 1))
    loss.backward()
    assert loss.dtype == torch.float32
    # r = e^1.75: w · r = 5.7546 · sech²(2.3773) = .1949; in bfloat16 σ(4.7546) has the neighbours .9883 and .9922
    assert new.grad.item() == pytest.approx(-5.7546 / math.cosh(2.3773) ** 2, rel=2**-8)


def test_a_response_without_tokens_contributes_nothing_but_counts():
    mask = [[True, True], [False, False]]
    assert gradient([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0], mask).tolist() == [[-0.25, -0.25], [0.0, 0.0]]  # 1 / (2 · 2)
    loss, metrics = sapo_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 2))
    assert loss.item() == 0.0
    assert {name: value.item() for name, value in metrics.items()} == {
        **{f"ratio_{name}": 1.0 for name in ("mean", "min", "p01", "p50", "p99", "max")},
        **{f"gate_mean{sign}": 1.0 for sign in ("", "_positive", "_negative")},
        **{f"gate_below_half{sign}": 0.0 for sign in ("", "_positive", "_negative")},
        "log_ratio_variance": 0.0,
    }


def test_gradient_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    old = -2 * torch.rand(4, 5, dtype=torch.float64, generator=generator)
    new = (old + 0.8 * torch.randn(4, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
    advantages = double([1.3, -0.7, 2.0, 1.0])
    assert torch.autograd.gradcheck(lambda x: sapo_loss(x, old, advantages, mask, tau_pos=0.9, tau_neg=1.3)[0], new)


def test_no_gradient_flows_into_the_policy_that_sampled():
    old = torch.zeros(1, 2, requires_grad=True)
    new = torch.zeros(1, 2, requires_grad=True)
    sapo_loss(new, old, torch.ones(1), torch.ones(1, 2))[0].backward()
    assert old.grad is None
    itself = torch.zeros(1, 2, requires_grad=True)
    sapo_loss(itself, itself, torch.ones(1), torch.ones(1, 2))[
        0
    ].backward()  # the first minibatch, as the learner does it
    assert itself.grad.tolist() == [[-0.5, -0.5]]


def test_gate_is_not_detached():
    # A detached gate would multiply r: pull 2 · r at r = 1 and 4 · r far out. The true pull is 1, and fades.
    assert weight_times_ratio(1.0, 1.0) == pytest.approx(1.0, abs=1e-15)
    assert weight_times_ratio(20.0, 1.0) < 1e-6


def test_each_response_counts_the_same_whatever_its_length():
    mask = [[True] + [False] * 3, [True] * 4]
    grad = gradient(torch.zeros(2, 4).tolist(), [1.0, 1.0], mask)
    assert grad.sum(1).tolist() == pytest.approx([-0.5, -0.5])  # token-mean would give −1/5 and −4/5
    assert grad[0, 0].item() == 4 * grad[1, 0].item()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_losses_and_gradients_of_any_split_add_up_to_the_whole(data: st.DataObject):
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    owner = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    shape = (len(lengths), 6)
    old = -torch.rand(shape, generator=generator)
    new = old + 0.5 * torch.randn(shape, generator=generator)
    advantages = torch.randn(len(lengths), generator=generator)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]

    def loss_and_gradient(rows: list[int]) -> tuple[float, Tensor]:
        width = max(1, *(lengths[row] for row in rows)) if rows else 1  # microbatches are padded to their own length
        part = new[rows, :width].clone().requires_grad_()
        loss, _ = sapo_loss(part, old[rows, :width], advantages[rows], mask[rows, :width], num_sequences=len(lengths))
        loss.backward()
        return loss.item(), torch.nn.functional.pad(part.grad, (0, 6 - width))

    whole, whole_grad = loss_and_gradient(list(range(len(lengths))))
    total, grad = 0.0, torch.zeros(shape)
    for microbatch in range(4):
        rows = [row for row, its in enumerate(owner) if its == microbatch]
        loss, grad[rows] = loss_and_gradient(rows)
        total += loss
    assert total == pytest.approx(whole, abs=1e-6)
    assert torch.allclose(grad, whole_grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
@pytest.mark.parametrize("name", ["tau_pos", "tau_neg"])
def test_temperature_that_is_not_positive_is_named_with_its_value(name: str, value: float):
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=f"^{name} must be > 0, got {value}$"):
        sapo_loss(x, x, torch.ones(1), x, **{name: value})


def test_shapes_that_differ_are_named():
    call = partial(sapo_loss, torch.zeros(2, 3))
    for old, advantages, mask in [
        ((2, 4), (2,), (2, 3)),
        ((2, 3), (3,), (2, 3)),
        ((2, 3), (2, 1), (2, 3)),
        ((2, 3), (2,), (3,)),
    ]:
        with pytest.raises(ValueError, match=r"must be \[B, T\] and advantages \[B\], got \(2, 3\), ") as error:
            call(torch.zeros(old), torch.zeros(advantages), torch.zeros(mask))
        assert str(error.value).endswith(f"{old}, {mask} and {advantages}")
    with pytest.raises(ValueError, match=r"got \(3,\), \(3,\), \(3,\) and \(3,\)$"):
        sapo_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.zeros(3))


def test_metrics_are_those_worked_by_hand():
    # Ratios 1/2 and 2 of a positive response, 5 of a negative one; the 100 lies outside the mask.
    log_ratio = torch.tensor([[math.log(0.5), math.log(2.0)], [math.log(5.0), 100.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    new = log_ratio.requires_grad_()
    _, metrics = sapo_loss(new, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), mask)
    assert not any(value.requires_grad for value in metrics.values())
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "ratio_mean": 2.5,
            "ratio_min": 0.5,
            "ratio_p01": 0.5,
            "ratio_p50": 2.0,
            "ratio_p99": 5.0,
            "ratio_max": 5.0,
            "gate_mean": (0.9400 + 0.7864 + 0.0582) / 3,
            "gate_mean_positive": (0.9400 + 0.7864) / 2,
            "gate_mean_negative": 0.0582,
            "gate_below_half_positive": 0.0,
            "gate_below_half_negative": 1.0,
            "gate_below_half": 1 / 3,
            "log_ratio_variance": math.log(2) ** 2 / 2,  # (ln² 2 + 0) / 2: one token has no variance
        },
        abs=ROUNDED,
    )
