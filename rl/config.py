"""Every choice of a run: frozen, printable, saved as `config.json`. Field docstrings are the `--help` of every recipe.

An option is declared once, with its bound, its unit and its help. `TrainConfig` inherits groups of options, so that a component
takes only the group that it needs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from rl.config_checks import (
    check_bounds,
    check_correction,
    check_groups,
    check_lengths,
    check_objective_name,
    check_policy,
    check_teacher,
)
from rollout.config import RESUMABLE, Count, CountOrZero, Dtype, RolloutConfig, Seconds

Positive = Annotated[float, Gt(0)]
PositiveOrZero = Annotated[float, Ge(0)]

AdvantageKind = Literal["group_std", "group_std_sample", "group_mean", "leave_one_out", "task_std"]
WandbMode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then a constant or a falling learning rate."""

    learning_rate: Positive = 1e-6
    """Peak learning rate."""
    vision_learning_rate: Annotated[float | None, Ge(0)] = None
    """Peak learning rate of the vision tower; default: learning_rate; 0 freezes the tower."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's two moments."""
    eps: Positive = 1e-8
    """AdamW's term in the denominator: gradients far below it change nothing."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping: gradients are scaled down to this global L2 norm."""
    warmup_updates: CountOrZero = 10
    """Optimizer updates over which the learning rate rises from 0."""
    decay_updates: CountOrZero = 0
    """Optimizer updates, counted from the first, over which the learning rate falls linearly to a tenth of its peak. It stays
    there. 0: no decay."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """The learner: its processes, its memory, its precision."""

    gpus: Annotated[CountOrZero, RESUMABLE] = 0
    """GPUs of the learner, one rank on each; several ranks shard the policy by FSDP2. 0 trains on the CPU."""
    cpu_ranks: Annotated[Count, RESUMABLE] = 1
    """Ranks of the learner where gpus is 0; several ranks shard the policy by FSDP2."""
    replicas: Annotated[int | None, Ge(1), RESUMABLE] = None
    """HSDP: replicas of the policy. Each is sharded over its own ranks, best those of one node: only gradients go between nodes. 1:
    FSDP2 over all ranks. Default: one on each node, if the learner has whole nodes that hold it by the memory plan; else 1."""
    threads: Annotated[int | None, Gt(0), RESUMABLE] = None
    """CPU threads of each rank. Default: all cores over the ranks, or half of them if max_staleness > 0; 1 on GPUs."""
    offload: Annotated[bool, RESUMABLE] = False
    """CPU offload: keeps weights, gradients and optimizer state in host memory, and only the layers at work on the GPU."""
    dtype: Dtype = "auto"
    """Precision of forward and backward passes; master weights are always float32. auto: bfloat16 if learner and engines are on
    GPUs or on processors that multiply in it (AMX, AVX-512 BF16), else float32."""
    routing_replay: Literal["off", "R2", "R3"] = "R2"
    """Routing replay, MoE only. R2 trains off-policy minibatches through the experts that the old policy chose. R3 (rollout routing
    replay) trains all minibatches through the experts that the engine chose, and needs engines on GPUs. The router still learns."""
    gradient_checkpointing: Annotated[bool, RESUMABLE] = False
    """Activation checkpointing: keeps one tensor per layer and recomputes the rest in the backward pass. Less memory, one more
    forward pass."""
    microbatch_tokens: Annotated[int, RESUMABLE] = 16384
    """Token budget of one rank's forward and backward pass, image tokens and any padding included."""
    packing: Annotated[bool, RESUMABLE] = True
    """Sequence packing: concatenates sequences instead of padding them to equal length."""
    share_prefixes: Annotated[bool, RESUMABLE] = True
    """With packing: a beginning that samples of a prompt have in common passes through the layers once, pictures included."""

    @property
    def num_ranks(self) -> int:
        """Processes that share the policy."""
        return self.gpus or self.cpu_ranks

    @property
    def shards(self) -> int:
        """Ranks over which a replica of the policy is sharded."""
        return self.num_ranks // (self.replicas or 1)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA: low-rank adapters instead of all weights; merged into every checkpoint."""

    rank: CountOrZero = 0
    """Rank of the adapters; 0: no LoRA, all weights are trained."""
    alpha: Positive = 32.0
    """An adapter's product is scaled by alpha / rank."""
    parts: tuple[Literal["language", "vision", "experts"], ...] = ("language",)
    """Parts with adapters: the language model's linear layers, the vision tower's, the experts of a MoE."""
    sync: Annotated[Literal["merged", "adapter"], RESUMABLE] = "merged"
    """Content of a weight sync: all weights with the adapters merged, or the adapters alone, which vLLM applies. The latter needs
    parts language only."""


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """Corrections of the mismatch between engine and learner: importance weights π_old/μ. Each is off unless set."""

    token_cap: PositiveOrZero = 0.0
    """Truncated importance sampling (TIS): multiplies each token's gradient by min(π_old/μ, token_cap). 0: off. Published runs use
    2 to 5."""
    token_band: tuple[float, float] | None = None
    """Masked importance sampling by token (as in IcePop): drops tokens whose π_old/μ leaves this band, for example 0.5 2.0."""
    sequence_band: tuple[float, float] | None = None
    """Masked importance sampling by sequence: drops responses whose geometric mean of π_old/μ leaves this band, for example
    0.99 1.01."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """On-policy distillation: a larger or better policy, served by its own vLLM engines, scores every sampled token."""

    model: Annotated[str | None, RESUMABLE] = None
    """A folder or hub name; its vocabulary must be the student's. Default: no teacher."""
    coefficient: Positive = 1.0
    """Weight of log p(teacher) - log p(student), in nats, in each token's advantage: descends the reverse KL."""
    reward_weight: PositiveOrZero = 0.0
    """Weight of the rewards' advantages, added to the teacher's. 0: rewards are only measured."""
    num_engines: Annotated[Count, RESUMABLE] = 1
    """Ray actors, each with one vLLM engine."""
    gpus_per_engine: Annotated[CountOrZero, RESUMABLE] = 0
    """GPUs of each engine (tensor parallel over all of them), not shared with learner or student; 0 runs vLLM on the CPU."""
    threads_per_engine: Annotated[int | None, Gt(0), RESUMABLE] = None
    """CPU threads of each engine. Default: as rollout.threads_per_engine, with which the cores are shared."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the teacher's weights."""
    kv_cache_gib: Annotated[Positive, RESUMABLE] = 1.0
    """Key-value cache of each engine, in GiB (CPU engines)."""
    gpu_memory_utilization: Annotated[Positive, RESUMABLE] = 0.85
    """Share of GPU memory that an engine may use (GPU engines); the logits of max_batched_tokens come on top."""
    max_batched_tokens: Annotated[Count, RESUMABLE] = 2048
    """Tokens that an engine scores at once. Each uses 8 bytes per vocabulary entry: 2.5 GB for Qwen3-VL's 151,936."""

    def __post_init__(self) -> None:
        # A recipe may pass a Path.
        object.__setattr__(self, "model", None if self.model is None else str(self.model))

    def engine_config(self, student: RolloutConfig) -> RolloutConfig:
        """The teacher's engines: machines and memory of its own; pixel limits, lengths and temperature of the student's."""
        return replace(
            student,
            num_engines=self.num_engines,
            gpus_per_engine=self.gpus_per_engine,
            threads_per_engine=self.threads_per_engine,
            dtype=self.dtype,
            kv_cache_gib=self.kv_cache_gib,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_batched_tokens=self.max_batched_tokens,
            max_running=min(student.max_running, self.max_batched_tokens),
            # vLLM samples one token after the longest sequence; it is discarded.
            max_model_len=student.max_model_len + 1,
            weight_transfer="shared_memory",
        )


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
class PolicyOptions:
    """The policy and its training: all that a learner of RL and supervised learning have in common."""

    model: Annotated[str, RESUMABLE]
    """A folder or hub name that from_pretrained loads."""
    seed: int = 0
    """Seeds the order of prompts and every sampled token."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)


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
class ObjectiveOptions:
    """The objective and its constants."""

    objective: str = "sapo"
    """sapo, grpo, gspo, dapo, dr_grpo, cispo, vespo, policy_gradient, or FILE.py:FUNCTION, an objective of yours."""
    tau_pos: Positive = 1.0
    """SAPO's gate temperature for positive advantages."""
    tau_neg: Positive = 1.05
    """SAPO's gate temperature for negative (and zero) advantages."""
    clip_low: Annotated[float | None, Gt(0)] = None
    """Clipping range: how far a ratio may fall below 1, in objectives that clip. Default: the objective's own."""
    clip_high: Annotated[float | None, Gt(0)] = None
    """Clipping range: how far a ratio may rise above 1, in objectives that clip. Default: the objective's own."""


@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """The optimizer updates that a learner makes of one step's samples."""

    num_minibatches: Count = 2
    """Optimizer updates of each step; each uses an equal share of the prompts."""
    kl_coefficient: PositiveOrZero = 0.0
    """Weight of a KL penalty to the policy that the run started from. 0: off, and no reference policy in memory."""
    balance_coefficient: PositiveOrZero = 0.0
    """MoE only: weight of a load-balancing loss, which spreads each sequence's tokens over the experts. 0: off."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)


@dataclass(frozen=True, kw_only=True)
class LearningOptions(UpdateOptions, ObjectiveOptions, PolicyOptions):
    """Everything that a learner needs; supervised learning makes one, RL inherits it."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)


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
    learner: LearnerConfig = LearnerConfig(dtype="float32")


def config_dict(config: Any) -> dict[str, Any]:
    """A config as JSON has it: the content of `config.json` and of checkpoints."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain


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
