"""The cells of the grid: objectives with their options, tasks, learning rates.

Learning rates are the same for all objectives and all N. They are where objectives differ: at 3e-5 SAPO holds at N = 32, and at
1e-4 all objectives collapse there within 40 steps, GRPO too (`python -m bench.gates --pilot`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from rl.config import CorrectionConfig

Kind = Literal["dense", "moe"]
TaskName = Literal["sums", "game"]

STEPS: Mapping[TaskName, int] = {"sums": 120, "game": 60}
"""Steps of a run. Each has 32 prompts × 4 completions. The game is learned in 25."""
PROMPTS_PER_STEP = 32
GROUP_SIZE = 4
UPDATES = (1, 2, 4, 8, 16, 32)
"""Optimizer updates per step, N."""

LEARNING_RATES: Mapping[TaskName, float] = {"sums": 6e-5, "game": 6e-5}

MASK = {"correction": CorrectionConfig(off_policy_threshold=0.1)}


def _gate(objective: str, tau: float) -> dict[str, Any]:
    """Returns an objective with τ, and 1.05 τ for negative advantages as in SAPO's paper."""
    return {"objective": objective, "tau_pos": tau, "tau_neg": 1.05 * tau}


OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "sapo": {"objective": "sapo"},
    "grpo": {"objective": "grpo"},
    "gspo": {"objective": "gspo"},
    # GSPO's bounds are for responses of thousands of tokens, whose mean log ratio is narrow.
    "gspo wide": {"objective": "gspo", "clip_low": 0.05, "clip_high": 0.07},
    "cispo": {"objective": "cispo"},
    "dapo": {"objective": "dapo"},
    "vespo": {"objective": "vespo"},
    "plain": {"objective": "policy_gradient"},
    "sapo τ 3": _gate("sapo", 3.0),
    "sapo τ 10": _gate("sapo", 10.0),
    "sapo τ 1/10": {"objective": "sapo", "tau_pos": 1.0, "tau_neg": 10.0},
    "sapo + mask": {"objective": "sapo", **MASK},
    "sapo τ 10 + mask": {**_gate("sapo", 10.0), **MASK},
    "sapo + stop": {"objective": "sapo", "correction": CorrectionConfig(target_kl=0.05)},
    "sapo + constant": {"objective": "sapo", "aggregation": "constant_length"},
    "sapo + KL": {"objective": "sapo", "kl_coefficient": 0.05},
    "one-sided τ 1": _gate("sapo_one_sided", 1.0),
    "one-sided τ 10": _gate("sapo_one_sided", 10.0),
    "one-sided τ 10 + mask": {**_gate("sapo_one_sided", 10.0), **MASK},
    "one-sided τ 20": _gate("sapo_one_sided", 20.0),
    "one-sided τ 20 + mask": {**_gate("sapo_one_sided", 20.0), **MASK},
    "sequence τ 30": _gate("sapo_sequence", 30.0),
    "sequence τ 60": _gate("sapo_sequence", 60.0),
    "sapo log": {"objective": "sapo_log"},
    "sapo erf": {"objective": "sapo_erf"},
    "sapo arctan": {"objective": "sapo_arctan"},
    "sspo": {"objective": "sspo"},
}
"""Name in tables → options of the run."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """One run."""

    task: TaskName
    kind: Kind
    objective: str
    """Key of `OBJECTIVES`."""
    updates: int
    seed: int
    learning_rate: float
    steps: int

    @property
    def key(self) -> str:
        """Names the run; a result with this name is not computed again."""
        parts = (self.task, self.kind, self.objective, self.updates, f"{self.learning_rate:g}", self.steps, self.seed)
        return "/".join(map(str, parts))


DECISIVE = (
    "sapo",
    "grpo",
    "gspo wide",
    "cispo",
    "sapo + mask",
    "sapo + stop",
    "one-sided τ 20 + mask",
    "sequence τ 60",
)
"""Objectives that come first."""
PLACES: tuple[tuple[TaskName, Kind], ...] = (("sums", "dense"), ("game", "dense"), ("sums", "moe"), ("game", "moe"))


def grid(seeds: int) -> Iterator[Cell]:
    """Yields the cells in the order of their use: what decides comes first, with three seeds."""
    rest = tuple(name for name in OBJECTIVES if name not in DECISIVE)
    tiers = (
        (range(3), (32, 8), DECISIVE),
        (range(3), (2,), DECISIVE),
        (range(3), (32, 8), rest),
        (range(3, seeds), (32, 8, 2), DECISIVE),
        (range(seeds), (16, 4, 1), DECISIVE),
        (range(3), (2,), rest),
        (range(3, seeds), (32, 8, 2), rest),
        (range(seeds), (16, 4, 1), rest),
    )
    for numbers, updates, names in tiers:
        for task, kind in PLACES:
            for seed, n, name in product(numbers, updates, names):
                if seed < seeds:
                    rate, steps = LEARNING_RATES[task], STEPS[task]
                    yield Cell(
                        task=task, kind=kind, objective=name, updates=n, seed=seed, learning_rate=rate, steps=steps
                    )
