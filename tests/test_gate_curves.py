"""The curves of the gates against closed forms, at points worked by hand; the picture is drawn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bench.gate_curves import METHODS, SHAPES, Gate, Options, curve, main

RATIOS = np.array([0.5, 1.0, 2.0, 5.0])
GATES: dict[str, Gate] = {gate.label: gate for gate in (*METHODS, *SHAPES)}


def sapo(ratio: float, tau: float) -> float:
    return ratio / math.cosh(tau * (ratio - 1) / 2) ** 2


WEIGHTS = {
    "SAPO, τ = 1 / 1.05": ([sapo(r, 1.0) for r in RATIOS], [sapo(r, 1.05) for r in RATIOS]),
    "SSPO": ([sapo(r, 1.0) for r in RATIOS], [sapo(r, 1.05) for r in RATIOS]),  # on one token it is SAPO
    "SAPO, τ = 10": ([sapo(r, 10.0) for r in RATIOS], [sapo(r, 10.0) for r in RATIOS]),
    "GRPO": ([0.5, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, 5.0]),
    "GSPO": ([0.5, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, 5.0]),
    "CISPO": ([0.5, 1.0, 2.0, 5.0], [0.5, 1.0, 2.0, 5.0]),
    "policy gradient": ([0.5, 1.0, 2.0, 5.0], [0.5, 1.0, 2.0, 5.0]),
    # r^2 e^(3 − 3r) and r^3 e^(2 − 2r)
    "VESPO": (
        [0.25 * math.exp(1.5), 1.0, 4 * math.exp(-3), 25 * math.exp(-12)],
        [0.125 * math.e, 1.0, 8 * math.exp(-2), 125 * math.exp(-8)],
    ),
    # r / (1 + |r − 1| τ/2)²; for r > 1 and τ = 1 that is 4r / (1 + r)², the same as sech²(log r / 2)
    "softsign": ([0.5 / 1.25**2, 1.0, 8 / 9, 20 / 36], [0.5 / 1.2625**2, 1.0, 2 / 1.525**2, 5 / 3.1**2]),
}


@pytest.mark.parametrize("label", WEIGHTS)
def test_gradients_follow_the_closed_forms(label: str):
    for advantage, expected in zip((1.0, -1.0), WEIGHTS[label], strict=True):
        found = curve(GATES[label].objective, RATIOS, advantage)
        assert found.weight_B.tolist() == pytest.approx(list(expected), abs=1e-12)


def test_softsign_and_the_sigmoid_of_log_r_coincide_above_1():
    softsign, of_log = (curve(GATES[label].objective, RATIOS, 1.0) for label in ("softsign", "sigmoid of log r"))
    assert softsign.weight_B[1:].tolist() == pytest.approx(of_log.weight_B[1:].tolist())
    assert of_log.weight_B[0] == pytest.approx(8 / 9)  # the same at 1/2 and 2


def test_values_are_those_of_the_objective():
    # 4 σ(r − 1); min(r, 1.27); negated for A = −1: max(r, 0.8)
    assert curve(GATES["SAPO, τ = 1 / 1.05"].objective, RATIOS, 1.0).value_B.tolist() == pytest.approx(
        [4 / (1 + math.exp(1 - r)) for r in RATIOS]
    )
    grpo = GATES["GRPO"].objective
    assert curve(grpo, RATIOS, 1.0).value_B.tolist() == pytest.approx([0.5, 1.0, 1.27, 1.27])
    assert curve(grpo, RATIOS, -1.0).value_B.tolist() == pytest.approx([-0.8, -1.0, -2.0, -5.0])


def test_the_picture_is_written(tmp_path: Path):
    main(Options(output=tmp_path / "pictures" / "gates.png", points=11))
    assert (tmp_path / "pictures" / "gates.png").read_bytes()[:4] == b"\x89PNG"
