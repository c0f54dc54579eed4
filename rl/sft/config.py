"""The choices of supervised learning; field docstrings are the `--help` of `recipes.cold_start`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from policies.model_sizes import ModelShape
from rl.config import LearnerConfig, LoraConfig, OptimizerConfig, TrainConfig, WandbMode, check_config
from rl.hardware.memory import MemoryPlan, plan_learner
from rollout.config import RolloutConfig


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """One run of supervised learning. A step is one optimizer update on batch_size prompts with what is shown behind them."""

    model: str
    """A folder or hub name that from_pretrained loads."""
    run_dir: Path = Path("runs/sft")
    """Where config, metrics and checkpoints go."""
    steps: int = 250
    """Optimizer updates."""
    seed: int = 0
    """Seeds the order of prompts."""
    resume: str | None = None
    """auto (the newest checkpoint of run_dir, if any) or a checkpoint folder."""
    batch_size: int = 32
    """Prompts of each update."""
    max_tokens: int = 4096
    """Longest prompt plus demonstration, in tokens, images included; longer ones are named, skipped and counted."""
    max_image_pixels: int | None = None
    """Larger images are scaled down to so many pixels; the policy's processor keeps it so. Default: the processor's own bound."""
    eval_every: int = 50
    """Steps between measurements of the held-out loss; the first is before the first step, and the last step always measures."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always writes one. 0: the last step only."""
    keep_checkpoints: int = 2
    """Older checkpoints are deleted; 0 keeps all."""
    wandb: WandbMode = "disabled"
    """'auto' is online if the user is logged in, else offline."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, betas=(0.9, 0.98), weight_decay=0.01)
    )
    lora: LoraConfig = field(default_factory=LoraConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model))
        object.__setattr__(self, "run_dir", Path(self.run_dir))


def as_learner_reads(config: SftConfig) -> TrainConfig:
    """The same choices as the learner of RL knows them: one minibatch a step, no engine."""
    return TrainConfig(
        model=config.model,
        run_dir=config.run_dir,
        seed=config.seed,
        prompts_per_step=config.batch_size,
        num_minibatches=1,
        optimizer=config.optimizer,
        lora=config.lora,
        learner=config.learner,
        rollout=RolloutConfig(
            max_image_pixels=config.max_image_pixels, max_model_len=config.max_tokens, max_tokens=1, temperature=1.0
        ),
    )


def plan_sft(config: SftConfig, shape: ModelShape, device_gib: float, gpus_per_node: int = 8) -> MemoryPlan:
    """Reckons what supervised learning on GPUs takes; see `rl.hardware.memory.plan_memory`.

    Raises:
        ValueError: The config puts the learner on the CPU.
    """
    # No siblings share a picture: of a group's size of 1, a microbatch may be pictures from end to end.
    alone = replace(as_learner_reads(config), group_size=1)
    return plan_learner(alone, shape, device_gib=device_gib, gpus_per_node=gpus_per_node)


def check_sft(config: SftConfig) -> None:
    """Refuses choices that cannot work, before anything is loaded.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    for name, least in (("steps", 1), ("batch_size", 1), ("max_tokens", 2), ("eval_every", 0), ("checkpoint_every", 0)):
        if not getattr(config, name) >= least:
            raise ValueError(f"{name} must be >= {least}, got {getattr(config, name)}")
    if config.learner.microbatch_tokens < config.max_tokens:
        raise ValueError(
            f"learner.microbatch_tokens = {config.learner.microbatch_tokens} cannot hold the longest sequence, max_tokens = "
            f"{config.max_tokens}: raise the one or lower the other"
        )
    check_config(as_learner_reads(config))
