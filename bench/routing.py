"""Measures the effect of routing replay (R2) on a stale minibatch, with a MoE policy in bfloat16.

    python -m bench.routing

The old policy passes over a minibatch, the learner updates on another one, and then passes over the first one again, with the old
experts and without. Weights and responses are random; neither Ray nor vLLM is used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from bench.learner import Options as StepOptions
from bench.learner import rollout
from policies.small.qwen3_vl import save_small_policy
from rl.config import LearnerConfig, OptimizerConfig, RolloutConfig, TrainConfig
from rl.learner.learner import Learner, OldPolicyPass
from rl.learner.microbatches import Microbatch


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    learning_rates: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """Learning rates of the one update in between."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the passes."""
    output: Path = Path("bench/results/routing.json")
    """File of the figures."""


def main(options: Options) -> None:
    """Measures, prints a table, and writes JSON."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_small_policy(Path(scratch) / "moe", kind="moe", seed=0)
        rows = [measure(folder, rate, options.dtype) for rate in options.learning_rates]
    table = Table(
        "learning rate",
        "unchanged weights, R2: max",
        "off: mean",
        "R2: mean",
        "router agrees with old choice",
        "replayed",
    )
    table.title = f"|Δ log p| to the old-policy pass, {options.dtype}"
    for row in rows:
        percent = (f"{100 * row[name]:.1f} %" for name in ("own_agreement", "replayed_agreement"))
        table.add_row(*(f"{row[name]:.1e}" for name in ("learning_rate", "unchanged_max", "off", "R2")), *percent)
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1))


@torch.no_grad()
def measure(folder: Path, learning_rate: float, dtype: Literal["float32", "bfloat16"]) -> dict[str, float]:
    """Returns one row of the table."""
    config = TrainConfig(
        model=str(folder),
        num_minibatches=1,
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_updates=0),
        rollout=RolloutConfig(max_tokens=64),
        learner=LearnerConfig(dtype=dtype, threads=2, routing_replay="R2"),
    )
    learner = Learner(config, folder)
    groups = rollout(StepOptions())
    batches = learner.make_microbatches([sample for group in groups[4:] for sample in group])
    old = learner.old_policy(batches)
    unchanged, _, _ = differences(learner, batches, old, replay=True)
    with torch.enable_grad():
        learner.step(groups[:4])
    unreplayed, agreement, _ = differences(learner, batches, old, replay=False)
    replayed, _, taken = differences(learner, batches, old, replay=True)
    return {
        "learning_rate": learning_rate,
        "unchanged_max": float(unchanged.max()),
        "off": float(unreplayed.mean()),
        "R2": float(replayed.mean()),
        "own_agreement": agreement,
        "replayed_agreement": taken,
    }


def differences(
    learner: Learner, batches: Sequence[Microbatch], old: Sequence[OldPolicyPass], *, replay: bool
) -> tuple[torch.Tensor, float, float]:
    """Compares a pass over the batches with the old one.

    Returns:
        |Δ log p| of every response token; the share of (token, layer) pairs whose router agrees with the old choice; the
        share whose old experts were called.
    """
    gaps, agreeing, called_as_replayed, total = [], 0, 0, 0
    for batch, old_pass in zip(batches, old, strict=True):
        assert old_pass.experts_KNk is not None
        called: list[torch.Tensor] = []
        blocks = [layer.mlp for layer in learner.model.model.language_model.layers if hasattr(layer.mlp, "experts")]
        hooks = [
            block.experts.register_forward_pre_hook(lambda _, args, into=called: into.append(args[1].clone()))
            for block in blocks
        ]
        with learner.routing.record() as chosen, learner.routing.replay(old_pass.experts_KNk if replay else None):
            logprobs_BT, _ = learner.forward(batch)
        for hook in hooks:
            hook.remove()
        gaps.append((logprobs_BT - old_pass.logprobs_BT).abs()[batch.mask_BT])
        known_N = (old_pass.experts_KNk != -1).all(2)[0]
        wanted = old_pass.experts_KNk[:, known_N].sort(-1).values
        agreeing += int((chosen[0][:, known_N].sort(-1).values == wanted).all(-1).sum())
        called_as_replayed += int((torch.stack(called)[:, known_N].short().sort(-1).values == wanted).all(-1).sum())
        total += wanted.shape[0] * wanted.shape[1]
    return torch.cat(gaps), agreeing / total, called_as_replayed / total


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
