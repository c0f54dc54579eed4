"""The options of supervised learning; field docstrings are the `--help` of `recipes.cold_start`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from rl.config import LearningOptions, OptimizerConfig, PolicyOptions, RunOptions, WandbMode
from rl.config.checks import check_bounds, check_policy
from rollout.config import RESUMABLE, Count, CountOrZero, Pixels, RolloutConfig


@dataclass(frozen=True, kw_only=True)
class SftConfig(PolicyOptions, RunOptions):
    """One run of supervised learning. A step is one optimizer update on batch_size prompts with their demonstrations."""

    run_dir: Path = Path("runs/sft")
    """Folder for config, metrics and checkpoints."""
    steps: int = 250
    """Optimizer updates."""
    seed: int = 0
    """Seeds the order of prompts."""
    batch_size: Count = 32
    """Prompts of each update."""
    max_tokens: Annotated[int, Ge(2)] = 4096
    """Longest prompt plus demonstration, in tokens, images included; longer ones are logged, skipped and counted."""
    max_image_pixels: Pixels = None
    """Larger images are scaled down to so many pixels, also in RL. Default: the processor's own limit."""
    eval_every: Annotated[CountOrZero, RESUMABLE] = 50
    """Steps between measurements of the held-out loss; the first is before the first step, and the last step always measures."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always writes one. 0: the last step only."""
    wandb: WandbMode = "disabled"
    """auto is online if the user is logged in, else offline."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, betas=(0.9, 0.98), weight_decay=0.01)
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model))
        object.__setattr__(self, "run_dir", Path(self.run_dir))

    def learning_options(self) -> LearningOptions:
        """The options of RL's learner for the same updates: one minibatch a step, temperature 1."""
        lengths = RolloutConfig(max_image_pixels=self.max_image_pixels, max_model_len=self.max_tokens, max_tokens=1)
        return LearningOptions(
            model=self.model,
            seed=self.seed,
            num_minibatches=1,
            optimizer=self.optimizer,
            lora=self.lora,
            learner=self.learner,
            rollout=lengths,
        )


def check_sft(config: SftConfig) -> None:
    """Checks bounds, and choices that exclude each other, before anything is loaded.

    Raises:
        ValueError: A choice cannot work. Names the option, its value and the remedy.
    """
    check_bounds(config)
    check_policy(config)
    if config.learner.microbatch_tokens < config.max_tokens:
        raise ValueError(
            f"learner.microbatch_tokens = {config.learner.microbatch_tokens} cannot hold the longest sequence, max_tokens = "
            f"{config.max_tokens}: raise the one or lower the other"
        )
