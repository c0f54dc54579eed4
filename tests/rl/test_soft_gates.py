"""Gates other than SAPO's own: their shapes, and whole responses, worked by hand. Single tokens are in test_objectives."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from rl.objectives import OBJECTIVES, soft_gate_loss
from rl.objectives.soft import ARCTAN, ERF, SIGMOID, SOFTSIGN, Shape
from rl.sapo import sapo_loss
from tests.losses import double, gate, slope, value_and_gradient


def test_sspo_weighs_every_token_by_the_geometric_mean_of_the_gates():
    # τ = 1, A = 1, r = 2 and 1: p = σ(1) = .7311, σ(0) = .5; f = 4p; s = √(f₁ f₂); gradient −s (1 − p) r / 2.
    p = 1 / (1 + math.exp(-1))
    s = math.sqrt(4 * p * 2)
    loss, [gradient] = value_and_gradient(OBJECTIVES["sspo"], [[2.0, 1.0]], [1.0])
    assert loss == pytest.approx(-s)
    assert gradient == pytest.approx([-s * (1 - p) * 2 / 2, -s * 0.5 / 2])


def test_a_gate_of_the_sequence_weighs_every_token_by_gspos_ratio():
    # r = 4 and 1: s = 2 for both, A = 1: each token's gradient is ω(2) / 2, though one of them has not moved.
    loss, [gradient] = value_and_gradient(OBJECTIVES["sapo_sequence"], [[4.0, 1.0]], [1.0], tau_pos=1.0)
    assert loss == pytest.approx(-gate(2.0, 1.0))
    assert gradient == pytest.approx([-slope(2.0, 1.0) / 2] * 2)


def test_the_sigmoid_among_the_shapes_is_sapo_itself():
    ratios, advantages = [[0.2, 3.0, 1.0], [1.5, 0.7, 0]], [1.3, -0.4]
    of_sapo = value_and_gradient(sapo_loss, ratios, advantages, tau_pos=2.0, tau_neg=12.0)
    of_shape = value_and_gradient(partial(soft_gate_loss, shape=SIGMOID), ratios, advantages, tau_pos=2.0, tau_neg=12.0)
    assert of_shape[0] == pytest.approx(of_sapo[0], abs=1e-12)
    assert double(of_shape[1]).allclose(double(of_sapo[1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [SIGMOID, ERF, ARCTAN, SOFTSIGN], ids=["sigmoid", "erf", "arctan", "softsign"])
def test_a_shape_rises_from_0_with_the_slope_that_it_names(shape: Shape):
    u = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    (slope_,) = torch.autograd.grad(shape.rise(u).sum(), u)
    assert slope_.allclose(shape.slope(u), rtol=0, atol=1e-12)
    assert shape.slope(double([0.0])).item() == 1
    assert (shape.slope(u) > 0).all() and shape.rise(double([-1e9])).item() == pytest.approx(0, abs=1e-8)
    assert shape.rise(double([1e9])).item() == pytest.approx(2 * shape.rise(double([0.0])).item())
