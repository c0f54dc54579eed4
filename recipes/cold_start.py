"""Makes a small Qwen3-VL and teaches it an answer format by supervised learning; RL starts from its partial skill.

The recipes that train by RL do this by themselves; `--model FOLDER` hands them a policy made here. Nothing is rewarded
in supervised learning, so there is no --reward.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rl.cli import main
from rl.config import ColdStartConfig


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What to make and what to teach."""

    kind: Literal["dense", "moe"] = "dense"
    """Architecture: Qwen3-VL or Qwen3-VL-MoE."""
    data: Literal["digit_sums", "easy_vqa"] = "digit_sums"
    """What to learn from: the training set of the recipe of that name."""
    questions: Literal["color_and_shape", "yes_no_balanced", "mixed"] = "color_and_shape"
    """Which questions of easy_vqa."""
    num_digits: int = 3
    """Digits in a picture of digit_sums."""
    steps: Annotated[int, tyro.conf.arg(aliases=["--updates"])] = 250
    """Optimizer updates; as many as a recipe's --cold-start.updates, and the recipe finds the result made here."""
    run_dir: Path = Path("runs/cold_start")
    """Where the policy is kept, in a folder named by the hash of what made it."""
    seed: int = 0
    """Seeds the initial weights and the order of prompts."""
    batch_size: int = 32
    """Prompts of each update."""
    learning_rate: float = 1e-3
    """Peak learning rate; it rises over the first twentieth of the updates and stays."""
    threads: int = 2
    """CPU threads."""


def run(config: ColdStart) -> None:
    """Makes the policy, or finds it made."""
    # Imported late: `--help` and a mistyped option need not wait for torch.
    from rl.sft import cold_start
    from rollout.prompts import prompts_from
    from rollout.sources import digit_sums, easy_vqa

    if config.data == "digit_sums":
        rows = digit_sums.digit_sums("train", num_digits=config.num_digits)
        prompts = prompts_from(rows, digit_sums.to_prompt)
    else:
        prompts = prompts_from(easy_vqa.easy_vqa("train", questions=config.questions), easy_vqa.to_prompt)
    choices = ColdStartConfig(
        kind=config.kind,
        updates=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
        threads=config.threads,
        cache_dir=config.run_dir,
    )
    folder = cold_start(choices, prompts)
    report = json.loads((folder / "cold_start.json").read_text())
    print(f"loss {report['loss_first']:.3f} → {report['loss_last']:.3f} nats per token, in {report['seconds']:.0f} s")
    print(f"policy: {folder}")


if __name__ == "__main__":
    main(run, ColdStart, __doc__)
