"""One run of ours: `python -m bench.against_trl.ours --case NAME --steps N --policies FOLDER --run-dir FOLDER`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.against_trl.cases import CASES, case_policy, case_prompts, share_of_letters
from rl.config import EvalConfig, OptimizerConfig, RolloutConfig, SmallRecipe
from rl.run_dir.tracker import read_metrics

PHASES = ("generate", "score", "wait", "learn", "sync")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of a run."""

    case: str
    """Name of the case."""
    steps: int
    """Steps."""
    policies: Path
    """Folder of the checkpoints."""
    run_dir: Path
    """Folder of the run."""
    seed: int = 0
    """Seeds prompts and sampled tokens."""
    options: str = ""
    """Options of training, as on a recipe's command line."""


def main(arguments: Arguments) -> None:
    """Trains with the defaults of a recipe for two cores, without evaluation and W&B."""
    from rl import train

    case = CASES[arguments.case]
    config = SmallRecipe(
        model=str(case_policy(case, arguments.policies)),
        run_dir=arguments.run_dir,
        steps=arguments.steps,
        seed=arguments.seed,
        prompts_per_step=case.prompts_per_step,
        group_size=case.group_size,
        num_minibatches=1,
        optimizer=OptimizerConfig(learning_rate=1e-6, warmup_updates=0),
        rollout=RolloutConfig(dtype="float32", max_tokens=case.max_tokens, max_model_len=case.max_model_len),
        eval=EvalConfig(num_prompts=0),
        checkpoint_every=0,
        check_references=False,
        wandb="disabled",
    )
    config = tyro.cli(SmallRecipe, default=config, args=shlex.split(arguments.options))
    train(config, prompts=case_prompts(case), reward=share_of_letters)


def step_rows(run_dir: Path, sequences: int) -> list[dict[str, float]]:
    """Returns one row per step of a run: seconds by phase, and the lengths of its responses."""
    rows, before = [], 0.0
    for metrics in read_metrics(run_dir):
        if metrics["step"] == 0:
            continue
        rows.append(
            {
                "seconds": metrics["time/elapsed"] - before,
                **{phase: metrics[f"time/{phase}"] for phase in PHASES},
                "sequences": sequences,
                "tokens": sequences * metrics["reward/tokens"],
                "tokens_squared": sequences * metrics["reward/tokens_squared"],
            }
        )
        before = metrics["time/elapsed"]
    return rows


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
