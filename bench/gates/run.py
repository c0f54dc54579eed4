"""One run of the grid: the product's prompts, rewards, advantages and learner, with a sampler in the same process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gates.cells import GROUP_SIZE, OBJECTIVES, PROMPTS_PER_STEP, Cell, Kind, TaskName
from bench.gates.engine import LocalEngine, seeds_of
from recipes.digit_sums import sum_is_right
from recipes.grid_game import GridGame, won
from rewards.types import Verifier
from rl.config import ColdStartConfig, LearnerConfig, OptimizerConfig, TrainConfig
from rl.learner import Learner
from rl.samples import make_samples
from rl.sft import cold_start
from rl.sft.demonstrations import Demonstrate, reference_answer
from rollout.config import RolloutConfig
from rollout.data.prompts import Prompts, prompts_from
from rollout.environments.environment import MakeEnvironment
from rollout.tasks.digit_sums import digit_sums, to_prompt
from rollout.tasks.grid_game import GridGameEnvironment, grid_game, mostly_informed
from rollout.tasks.grid_game import to_prompt as to_game
from rollout.types import Group, Prompt, Sampling, sampled_mask

EVAL_EVERY = 5
"""Steps between measurements on held-out prompts."""
HELD_OUT = 128
"""Held-out prompts of these measurements; the last one has twice as many."""

METRICS = {
    "gate_mean": "gate",
    "gate_mean_positive": "gate_pos",
    "gate_mean_negative": "gate_neg",
    "gate_mean_last": "gate_last",
    "effective_sample_size": "ess",
    "negative_below_half": "neg_half",
    "sequences_masked": "masked",
    "ratio_p01": "r01",
    "ratio_p99": "r99",
    "ratio_max": "r_max",
    "log_ratio_variance": "var",
    "entropy": "entropy",
    "grad_norm": "grad",
    "routing_agreement": "routing",
    "skipped_updates": "skipped",
    "approx_kl": "step_kl",
    "approx_kl_last": "step_kl_last",
    "updates": "updates",
    "kl": "kl",
}
"""Metric under `policy/` → column of a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Prompts, and how they are answered and scored."""

    prompts: Prompts
    held_out: Prompts
    reward: Verifier
    rollout: RolloutConfig
    demonstrate: Demonstrate = reference_answer
    environment: MakeEnvironment | None = None
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)


def use_one_thread() -> None:
    """Leaves the other cores to other runs."""
    torch.set_num_threads(1)


def load_task(name: TaskName) -> Task:
    """Returns a task of the grid: the recipes' data, rewards and limits."""
    if name == "sums":
        return Task(
            prompts=prompts_from(digit_sums("train"), to_prompt),
            held_out=prompts_from(digit_sums("test", num_prompts=2000), to_prompt),
            reward=sum_is_right,
            rollout=RolloutConfig(dtype="float32", max_tokens=16, max_model_len=128),
        )
    recipe = GridGame()
    return Task(
        prompts=prompts_from(grid_game("train", recipe), to_game),
        held_out=prompts_from(grid_game("test", recipe, num_prompts=2000), to_game),
        reward=won,
        rollout=recipe.rollout,
        demonstrate=partial(mostly_informed, options=recipe),
        environment=partial(GridGameEnvironment, recipe),
        cold_start=recipe.cold_start,
    )


def start_policy(name: TaskName, kind: Kind, cache: Path) -> Path:
    """Returns the folder of the policy that all runs of a task start from.

    A cold start is found by a hash of its code, too. Here its first result is kept: all runs of a cache start from the same.
    """
    known = cache / f"{name}_{kind}.txt"
    if known.is_file():
        return cache / known.read_text()
    task = load_task(name)
    options = replace(task.cold_start, kind=kind, cache_dir=cache, threads=torch.get_num_threads())
    folder = cold_start(options, task.prompts, task.demonstrate)
    known.write_text(folder.name)
    return folder


def run_cell(cell: Cell, cache: Path) -> dict[str, Any]:
    """Trains one policy, and returns the cell with its curves.

    Args:
        cell: The run.
        cache: Folder of the cold starts.
    """
    task, start = load_task(cell.task), time.monotonic()
    folder = start_policy(cell.task, cell.kind, cache)
    learner = Learner(_config(cell, task, folder), folder)
    trial = _Trial(cell=cell, task=task, learner=learner, engine=LocalEngine(learner, folder, task.rollout))
    rows, held_out = [], [trial.score_held_out(0, HELD_OUT)]
    for step in range(1, cell.steps + 1):
        rows.append(trial.step(step))
        if step % EVAL_EVERY == 0:
            held_out.append(trial.score_held_out(step, HELD_OUT * (1 + (step == cell.steps))))
    return {
        "key": cell.key,
        "start": folder.name,
        "seconds": round(time.monotonic() - start, 1),
        "held_out": held_out,
        "greedy": trial.score_held_out(cell.steps, 2 * HELD_OUT, temperature=0.0)[1],
        "curves": {name: [_rounded(row.get(name)) for row in rows] for name in {n: 0 for row in rows for n in row}},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A run in progress."""

    cell: Cell
    task: Task
    learner: Learner
    engine: LocalEngine

    def step(self, step: int) -> dict[str, float]:
        """Generates, scores, learns; returns the step's row."""
        order = np.random.default_rng(self.cell.seed).permutation(len(self.task.prompts))
        chosen = order[np.arange((step - 1) * PROMPTS_PER_STEP, step * PROMPTS_PER_STEP) % len(order)]
        groups = self._play([self.task.prompts[int(i)] for i in chosen], step, GROUP_SIZE, 1.0)
        scores = [[self.task.reward(group.prompt, c) for c in group.completions] for group in groups]
        report = self.learner.step(make_samples(groups, scores))
        metrics = {key: report.metrics.get(f"policy/{name}") for name, key in METRICS.items()}
        rewards = [[score.reward for score in its] for its in scores]
        lengths = [sampled_mask(completion).sum() for group in groups for completion in group.completions]
        return {
            "reward": float(np.mean(rewards)),
            "equal": float(np.mean([len(set(its)) == 1 for its in rewards])),
            "tokens": float(np.mean(lengths)),
            "gap": report.metrics["rollout/logprob_gap_max"],
            **{key: value for key, value in metrics.items() if value is not None},
        }

    def score_held_out(self, step: int, count: int, temperature: float = 1.0) -> tuple[int, float]:
        """Returns the step and the mean reward on held-out prompts, always the same ones with the same seeds."""
        prompts = [self.task.held_out[i] for i in range(count)]
        groups = self._play(prompts, 0, 1, temperature)
        return step, float(np.mean([self.task.reward(g.prompt, c).reward for g in groups for c in g.completions]))

    def _play(self, prompts: Sequence[Prompt], step: int, group_size: int, temperature: float) -> list[Group]:
        seeds = seeds_of(self.cell.seed, step, groups=len(prompts), group_size=group_size)
        sampling = Sampling(max_tokens=self.task.rollout.max_tokens, temperature=temperature)
        return self.engine.play(prompts, sampling, seeds, self.task.environment)


def _config(cell: Cell, task: Task, folder: Path) -> TrainConfig:
    return TrainConfig(
        model=str(folder),
        seed=cell.seed,
        rollout=task.rollout,
        num_minibatches=cell.updates,
        prompts_per_step=PROMPTS_PER_STEP,
        group_size=GROUP_SIZE,
        optimizer=OptimizerConfig(learning_rate=cell.learning_rate),
        learner=LearnerConfig(dtype="float32", threads=torch.get_num_threads()),
        **OBJECTIVES[cell.objective],
    )


def _rounded(value: float | None) -> float | None:
    """Returns a number with four digits, for a short file."""
    return None if value is None else float(f"{value:.4g}")


def summary(result: Mapping[str, Any]) -> str:
    """Returns one line on a result."""
    scores = [score for _, score in result["held_out"]]
    last = [gate for gate in result["curves"].get("gate_last", result["curves"]["gate"]) if gate is not None]
    return (
        f"{result['key']}: {scores[0]:.3f} → {scores[-1]:.3f} (best {max(scores):.3f}), least gate {min(last):.3f}, "
        f"{result['seconds']:.0f} s"
    )
