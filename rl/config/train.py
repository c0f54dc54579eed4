"""Options of a run, and `TrainConfig`, which has them all."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from rl.config.checks import (
    check_bounds,
    check_correction,
    check_groups,
    check_lengths,
    check_objective_name,
    check_policy,
    check_teacher,
)
from rl.config.learning import LearningOptions
from rl.config.policy import LearnerConfig, PositiveOrZero
from rollout.config import RESUMABLE, Count, CountOrZero, Seconds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
AdvantageKind = Literal["group_std", "group_std_sample", "group_mean", "leave_one_out", "task_std"]
WandbMode = Literal["auto", "online", "offline", "disabled"]
RECIPE = "recipe"
"""Key of the recipe in a config file."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on held-out prompts, before, during and after training."""

    every: CountOrZero = 0
    """Steps between evaluations; 0 evaluates before and after the run only."""
    num_prompts: CountOrZero = 256
    """Held-out prompts, the first ones of the set."""
    num_samples: Count = 1
    """Sampled completions of each prompt, besides the greedy one; with several, pass@k and majority@k are measured too."""
    correct_at: float = 1.0
    """Lowest reward of a correct completion, for the accuracy of each task."""


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """The watchdog: a sign of a collapse in the metrics of the last steps."""

    action: Literal["off", "warn", "rollback"] = "warn"
    """warn: logs the sign, and what to try. rollback: also goes back to the newest checkpoint before it, switches the off-policy
    sequence mask on, divides num_minibatches by 4, and halves the learning rate."""
    max_rollbacks: Count = 3
    """Rollbacks after which the next alarm ends the run."""


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """Supervised training of the small policy before RL."""

    kind: Literal["dense", "moe"] = "dense"
    """Architecture: Qwen3-VL or Qwen3-VL-MoE."""
    updates: int = 250
    """Optimizer updates."""
    batch_size: int = 32
    """Prompts of each update."""
    learning_rate: float = 1e-3
    """Peak learning rate; it rises over the first twentieth of the updates and stays."""
    seed: int = 0
    """Seeds the initial weights and the order of prompts."""
    threads: int | None = None
    """CPU threads. Default: one for each core."""
    max_image_pixels: int | None = None
    """Larger images are scaled down to so many pixels, also in RL. Default: 512 × 512."""
    cache_dir: Path = Path("runs/cold_start")
    """Folder of the result, which is named by the hash of its inputs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache_dir", Path(self.cache_dir))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The run's folder, its length and its checkpoints."""

    run_dir: Annotated[Path, RESUMABLE] = Path("runs/run")
    """Folder for config, metrics, samples and checkpoints."""
    steps: Annotated[Count, RESUMABLE] = 100
    """Steps: each one generates, scores, learns and syncs."""
    resume: Annotated[str | None, RESUMABLE] = None
    """auto (the newest checkpoint of run_dir, if any) or a checkpoint folder."""
    checkpoint_every: Annotated[CountOrZero, RESUMABLE] = 50
    """Steps between checkpoints; the last step always writes one. 0: the last step only."""
    keep_checkpoints: Annotated[CountOrZero, RESUMABLE] = 2
    """Number of checkpoints to keep, the newest ones; 0 keeps all."""
    keep_best: Annotated[str | None, RESUMABLE] = None
    """A metric, such as eval/greedy: the checkpoint where it was greatest is kept, too."""
    after_checkpoint: Annotated[str | None, RESUMABLE] = None
    """FILE.py:FUNCTION, called with the folder of each new checkpoint while training goes on, for example to upload it."""
    background_checkpoints: Annotated[bool, RESUMABLE] = True
    """Writes a checkpoint while training goes on, from a copy in host memory, if that has room. no: training waits for it."""
    stop_timeout: Annotated[Seconds, RESUMABLE] = 60.0
    """Seconds after SIGTERM, SIGINT or SIGHUP in which the run writes a checkpoint and ends; then it is killed."""
    restarts: Annotated[CountOrZero, RESUMABLE] = 0
    """Times that a run which has died is started again, from its newest checkpoint."""
    wandb: Annotated[WandbMode, RESUMABLE] = "auto"
    """auto is online if the user is logged in, else offline."""

    def is_due(self, step: int, every: int) -> bool:
        """Returns True at multiples of `every`, and at the last step."""
        return step == self.steps or (every > 0 and step % every == 0)


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The batches that the engines generate."""

    prompts_per_step: Count = 16
    """Prompts of each step."""
    group_size: int = 8
    """Completions per prompt, whose rewards are compared with each other; at least 2."""
    max_staleness: CountOrZero = 0
    """Asynchronous RL: how many policy versions off-policy a token may be. 0: strictly on-policy, engines and learner take turns.
    1 or more: engines generate ahead while the learner trains."""
    refill_prompts: CountOrZero = 0
    """Dynamic sampling (DAPO): prompts that a step may draw in addition, to replace groups whose rewards are all equal."""
    advantage: AdvantageKind = "group_std"
    """Advantage estimator. group_std, group_std_sample: reward minus the group's mean, divided by its std (population, sample).
    group_mean: not divided. leave_one_out: reward minus the mean of the others (RLOO). task_std: group_mean divided by the std
    over the task in this step."""


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """The processes that score completions."""

    reward_timeout: Annotated[Seconds, RESUMABLE] = 10.0
    """Time limit of one reward call, in seconds."""
    reward_memory_gib: PositiveOrZero = 8.0
    """Memory limit of one reward worker, in GiB: calls beyond it raise a MemoryError. 0: no limit."""
    reward_workers: Annotated[Count, RESUMABLE] = 1
    """Processes that score completions."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RewardOptions, BatchOptions, RunOptions, LearningOptions):
    """One run of SAPO. A step is prompts_per_step × group_size completions and num_minibatches optimizer updates."""

    placement: Annotated[Literal["separate", "colocated"] | None, RESUMABLE] = None
    """GPU placement. separate (disaggregated): learner and engines have their own GPUs. colocated (hybrid engine): they take turns
    on the same GPUs. Derives learner.gpus, rollout.num_engines and rollout.weight_transfer from the GPUs found and
    rollout.gpus_per_engine, and prints them. Default: the values of those options."""
    allow_overcommit: Annotated[bool, RESUMABLE] = False
    """Starts a run on GPUs although it does not fit them by the memory plan."""
    reward: str | None = None
    """FILE.py:FUNCTION, a reward of yours that replaces the recipe's."""
    reward_cache: CountOrZero = 4096
    """Scores that each reward worker caches: an identical completion of the same prompt is scored once. 0: no cache, for rewards
    with other inputs or random results."""
    check_references: Annotated[bool, RESUMABLE] = True
    """Scores some reference answers as if they were responses before the start, and refuses a task whose reward accepts none of
    them. Switch it off for rewards that require more than an answer. Off with an environment."""
    selection: str | None = None
    """A selected.jsonl that recipes.select made of the training prompts: the run draws no others."""
    samples_every: Annotated[CountOrZero, RESUMABLE] = 10
    """Steps between files in samples/: questions, answers and scores of a few prompts."""

    eval: Annotated[EvalConfig, RESUMABLE] = field(default_factory=EvalConfig)
    watchdog: Annotated[WatchdogConfig, RESUMABLE] = field(default_factory=WatchdogConfig)

    def __post_init__(self) -> None:
        # A recipe may pass a Path as model, and a text as run_dir.
        object.__setattr__(self, "model", str(self.model))
        object.__setattr__(self, "run_dir", Path(self.run_dir))


@dataclass(frozen=True, kw_only=True)
class SmallRecipe(TrainConfig):
    """The defaults of a recipe for two CPU cores: a small policy, made and trained by a cold start."""

    model: str = "cold-start"
    """A folder or hub name; cold-start makes and trains the small policy first."""
    cold_start: Annotated[ColdStartConfig, RESUMABLE] = ColdStartConfig()
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(dtype="float32"))


def recipe_of(config: Any) -> str:
    """Returns the recipe whose options a config has: its name, or its file. Empty for a config of no recipe."""
    module = type(config).__module__
    if module == "__main__":
        main = sys.modules[module]
        module = main.__spec__.name if main.__spec__ else getattr(main, "__file__", None) or ""
    package, _, name = module.partition(".")
    if package == "recipes":
        return name
    return str(Path(module).resolve()) if module.endswith(".py") else ""


def config_file(config: Any) -> dict[str, Any]:
    """Returns the content of a run's `config.json`: its recipe and its options."""
    return {RECIPE: recipe_of(config), **config_dict(config)}


def config_dict(config: Any) -> dict[str, Any]:
    """Returns a config as JSON has it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain


def with_option(config: C, name: str, value: Any) -> C:
    """Returns a config with another value of the option of a dotted name."""
    section, _, rest = name.partition(".")
    changed: Any = {section: with_option(getattr(config, section), rest, value) if rest else value}
    return replace(config, **changed)


def check_config(config: TrainConfig) -> None:
    """Checks bounds, and choices that exclude each other, before anything is loaded.

    Raises:
        ValueError: A choice cannot work. Names the option, its value and the remedy.
    """
    check_bounds(config)
    check_objective_name(config)
    check_policy(config)
    check_teacher(config.teacher, config.rollout, config.refill_prompts)
    check_groups(config, config)
    check_correction(config.correction)
    check_lengths(config.rollout)
    rollout, learner = config.rollout, config.learner
    if learner.routing_replay == "R3" and not rollout.gpus_per_engine:
        raise ValueError(
            "learner.routing_replay = R3 with rollout.gpus_per_engine = 0: vLLM returns its experts on GPUs only; use R2"
        )
    if config.max_staleness and rollout.shares_gpus:
        raise ValueError(
            f"max_staleness = {config.max_staleness} lets engines generate while the learner trains, but with placement colocated "
            "(rollout.weight_transfer ipc) they sleep then: use max_staleness 0, or placement separate"
        )
    if config.max_staleness and config.lora.sync == "adapter" and rollout.in_flight == "keep":
        raise ValueError(
            f"lora.sync = adapter with max_staleness = {config.max_staleness}: a running completion cannot change its adapters: "
            "use rollout.in_flight requeue, or lora.sync merged"
        )
    if learner.microbatch_tokens < rollout.max_model_len:
        raise ValueError(
            f"learner.microbatch_tokens = {learner.microbatch_tokens} cannot hold the longest sequence, "
            f"rollout.max_model_len = {rollout.max_model_len}: raise the one or lower the other"
        )
