"""Draws the gates of all objectives from their code: value and gradient of one token over its ratio.

    python -m bench.gate_curves --output docs/gates.png

The gradient is autograd's, by the function that measures token weights in training. No formula is written here a second time.

Shapes: B tokens, each a sequence of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro

from rl.objectives import OBJECTIVES, Objective, accepted
from rl.objectives.token_weights import token_weights

SMALLEST = 1e-3
"""The first ratio; log 0 is infinite."""


class Curve(NamedTuple):
    """One objective on single tokens."""

    weight_B: np.ndarray
    """ω: the gradient over the one on-policy."""
    value_B: np.ndarray
    """A · f(r): the objective, to be maximised."""


class Gate(NamedTuple):
    """One line of the picture."""

    label: str
    objective: Objective
    color: str
    line: str = "-"
    width: float = 1.6
    has_value: bool = True
    """False if the weight is detached: the value, weight · log π, is then no function of the ratio."""


SAPO = OBJECTIVES["sapo"]
POLICY_GRADIENT = Gate("policy gradient", OBJECTIVES["policy_gradient"], "black", "--", 1.0)

METHODS = (
    Gate("SAPO, τ = 1 / 1.05", SAPO, "tab:blue", width=3.5),
    Gate("SSPO", OBJECTIVES["sspo"], "gold", ":", 1.8),
    Gate("SAPO, τ = 3", partial(SAPO, tau_pos=3.0, tau_neg=3.0), "tab:blue", "--"),
    Gate("SAPO, τ = 10", partial(SAPO, tau_pos=10.0, tau_neg=10.0), "tab:blue", ":"),
    Gate("one-sided SAPO, τ = 20 / 21", OBJECTIVES["sapo_one_sided"], "tab:cyan", "-."),
    Gate("GRPO", OBJECTIVES["grpo"], "tab:red"),
    Gate("DAPO", OBJECTIVES["dapo"], "tab:orange", "--"),
    Gate("GSPO", OBJECTIVES["gspo"], "tab:brown", ":"),
    Gate("VESPO", OBJECTIVES["vespo"], "tab:purple", has_value=False),
    Gate("CISPO", OBJECTIVES["cispo"], "lightgreen", width=3.5, has_value=False),
    POLICY_GRADIENT,
)
"""The upper row: SAPO beside other methods. On one token SSPO is SAPO, and CISPO the policy gradient up to its bound, 5."""

SHAPES = (
    Gate("sigmoid: SAPO", SAPO, "tab:blue", width=3.5),
    Gate("erf", OBJECTIVES["sapo_erf"], "tab:green"),
    Gate("arctan", OBJECTIVES["sapo_arctan"], "tab:purple"),
    Gate("softsign", OBJECTIVES["sapo_softsign"], "tab:orange"),
    Gate("sigmoid of log r", OBJECTIVES["sapo_log"], "tab:red", "--"),
    Gate("one-sided", partial(OBJECTIVES["sapo_one_sided"], tau_pos=1.0, tau_neg=1.05), "black", ":"),
    POLICY_GRADIENT,
)
"""The lower row: SAPO with other shapes, τ = 1 / 1.05. For r > 1 and τ = 1 softsign is the sigmoid of log r."""

COLUMNS = (("gradient ω(r), A > 0", 2.0), ("gradient ω(r), A < 0", 2.0), ("objective f(r)", 5.0))
"""Title and upper end of each panel."""

ROWS: tuple[tuple[str, tuple[Gate, ...]], ...] = (
    ("SAPO and other methods", METHODS),
    ("SAPO's gate, other shapes", SHAPES),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the picture."""

    output: Path = Path("docs/gates.png")
    """File of the picture."""
    largest: float = 5.0
    """Largest ratio."""
    points: int = 1001
    """Points of a curve."""


def main(options: Options) -> None:
    """Draws the picture."""
    ratios = np.linspace(SMALLEST, options.largest, options.points)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(ratios, options.output)
    print(f"picture: {options.output}")


def curve(objective: Objective, ratio_B: np.ndarray, advantage: float) -> Curve:
    """Returns weight and value of one token at each ratio."""
    new_B1 = torch.from_numpy(ratio_B).log()[:, None].requires_grad_()
    old_B1, mask_B1 = torch.zeros_like(new_B1), torch.ones_like(new_B1, dtype=torch.bool)
    advantages_B = torch.full((len(ratio_B),), advantage, dtype=torch.float64, requires_grad=True)
    counts = accepted(objective, {"num_sequences": 1, "num_tokens": 1})
    loss, _ = objective(new_B1, old_B1, advantages_B, mask_B1, **counts)
    gradient_B1, slope_B = torch.autograd.grad(loss, (new_B1, advantages_B))
    weight_B1 = token_weights(objective, gradient_B1, old_B1, advantages_B.detach(), mask_B1, counts)
    # The loss is the sum of −A · f, linear in each A.
    return Curve(weight_B1[:, 0].numpy(), (-advantages_B.detach() * slope_B).numpy())


def draw(ratio_B: np.ndarray, output: Path) -> None:
    """Writes the picture: a row for each family of gates; gradients of both signs, and the objective."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), layout="constrained", sharex=True)
    for panels, (title, gates) in zip(axes, ROWS, strict=True):
        for gate in gates:
            style = {"color": gate.color, "linestyle": gate.line, "linewidth": gate.width}
            positive, negative = (curve(gate.objective, ratio_B, advantage) for advantage in (1.0, -1.0))
            panels[0].plot(ratio_B, positive.weight_B, label=gate.label, **style)
            panels[1].plot(ratio_B, negative.weight_B, **style)
            if gate.has_value:
                panels[2].plot(ratio_B, positive.value_B, **style)
        panels[2].legend(
            *panels[0].get_legend_handles_labels(),
            title=title,
            loc="upper left",
            bbox_to_anchor=(1.02, 1),
            frameon=False,
        )
        for panel, (name, top) in zip(panels, COLUMNS, strict=True):
            panel.axvline(1, color="gray", linewidth=0.8)
            panel.set(title=name, xlim=(0, ratio_B[-1]), ylim=(-0.02 * top, top))
            panel.grid(alpha=0.3)
    for panel in axes[1]:
        panel.set_xlabel("ratio r of a token")
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
