"""Every choice of a run: frozen, printable, saved as `config.json`. Field docstrings are the `--help` of every recipe."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from rollout.config import ENGINE_RANKS, Dtype, RolloutConfig

AdvantageKind = Literal["group_std", "group_std_sample", "group_mean", "leave_one_out", "task_std"]
OBJECTIVE_NAMES = ("sapo", "grpo", "gspo", "dapo", "dr_grpo", "cispo", "vespo", "policy_gradient")
"""The keys of `rl.objectives.OBJECTIVES`, here to check a name without waiting for torch."""
WandbMode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then a constant or a falling learning rate."""

    learning_rate: float = 1e-6
    """Peak learning rate."""
    vision_learning_rate: float | None = None
    """Peak learning rate of the vision tower; default: learning_rate; 0 freezes the tower."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's two moments."""
    eps: float = 1e-8
    """AdamW's addend in the denominator: gradients far below it move nothing."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm."""
    warmup_updates: int = 10
    """Optimizer updates over which the learning rate rises from 0."""
    decay_updates: int = 0
    """Optimizer updates, counted from the first, over which the learning rate falls linearly to a tenth of its peak; there it
    stays. 0: it does not fall."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """The learner."""

    gpus: int = 0
    """GPUs of the learner, a rank on each; more than one share the policy by FSDP2. 0 trains on the CPU."""
    cpu_ranks: int = 1
    """Processes of the learner where gpus is 0; more than one share the policy by FSDP2."""
    threads: int = 1
    """CPU threads of each rank; engines and learner take turns, so this may be every core."""
    offload: bool = False
    """Keeps weights, gradients and the optimizer's state in host memory, and on the GPU what is at work alone."""
    dtype: Dtype = "bfloat16"
    """Precision of forward and backward passes; master weights are always float32."""
    routing_replay: Literal["off", "R2", "R3"] = "R2"
    """MoE only: R2 trains stale minibatches through the experts that the old policy chose for them, R3 all through those that the
    engine chose, which vLLM tells on GPUs alone. The router still learns."""
    gradient_checkpointing: bool = False
    """Keeps one tensor per layer and computes the rest again in the backward pass: less memory, one more forward pass."""
    microbatch_tokens: int = 16384
    """Token budget of one rank's forward and backward pass, images and any padding included."""
    packing: bool = True
    """Lays sequences one behind the other instead of padding them to equal length: no work is done on padding."""

    @property
    def num_ranks(self) -> int:
        """Processes that learn together."""
        return self.gpus or self.cpu_ranks


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters instead of all weights; merged wherever weights leave the learner."""

    rank: int = 0
    """Rank of the adapters; 0: no LoRA, all weights learn."""
    alpha: float = 32.0
    """An adapter's product is scaled by alpha / rank."""
    parts: tuple[Literal["language", "vision", "experts"], ...] = ("language",)
    """What gets adapters: the language model's linear layers, the vision tower's, the experts of a MoE."""
    sync: Literal["merged", "adapter"] = "merged"
    """What goes to the engines at each step: all weights with the adapters merged, or the adapters alone, which vLLM applies; the
    latter with parts language only."""


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """What to do about the mismatch between engine and learner: weights on π_old/μ, each off unless set."""

    token_cap: float = 0.0
    """Each token's gradient is multiplied by min(π_old/μ, this); 0: off. Published runs take 2 to 5."""
    token_band: tuple[float, float] | None = None
    """Tokens whose π_old/μ leaves this band are dropped, for example 0.5 2.0."""
    sequence_band: tuple[float, float] | None = None
    """Responses whose geometric mean of π_old/μ leaves this band are dropped whole, for example 0.99 1.01."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """On-policy distillation: a larger or better policy, served by vLLM engines of its own, has a word on every sampled token."""

    model: str | None = None
    """A folder or hub name, of the student's vocabulary. Default: no teacher."""
    coefficient: float = 1.0
    """Weight of log p(teacher) - log p(student), in nats, in each token's advantage: descends the reverse KL."""
    reward_weight: float = 0.0
    """Weight of the rewards' advantages beside it; 0: the teacher alone teaches, and rewards are only measured."""
    num_engines: int = 1
    """Ray actors, each owning one vLLM engine."""
    gpus_per_engine: int = 0
    """GPUs of each engine, beside those of learner and student (tensor parallel over all of them); 0 runs vLLM on the CPU."""
    threads_per_engine: int = 1
    """CPU threads of each engine."""
    dtype: Dtype = "bfloat16"
    """Precision of the teacher's weights."""
    kv_cache_gib: int = 1
    """Key-value cache of each engine, in GiB (CPU engines)."""
    gpu_memory_utilization: float = 0.85
    """Share of GPU memory that an engine may take (GPU engines); the logits of what it reads at once come on top."""
    max_batched_tokens: int = 2048
    """Tokens that an engine reads at once. Each takes 8 bytes for every word of the vocabulary: 2.5 GB for Qwen3-VL's 151,936."""

    def __post_init__(self) -> None:
        # As in TrainConfig: a recipe may have a Path.
        object.__setattr__(self, "model", None if self.model is None else str(self.model))


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measuring on held-out prompts, before, during and after training."""

    every: int = 0
    """Steps between evaluations; 0 evaluates before and after the run only."""
    num_prompts: int = 256
    """Held-out prompts, the first of them."""
    num_samples: int = 1
    """Sampled completions of each prompt, besides the greedy one; of several, pass@k and the majority are measured too."""
    correct_at: float = 1.0
    """From this reward on a completion counts as correct, in the figures of each task."""


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """How the small policy is made before RL."""

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
    threads: int = 2
    """CPU threads."""
    max_image_pixels: int | None = None
    """Larger images are scaled down to so many pixels; the policy's processor keeps it so. Default: 512 × 512."""
    cache_dir: Path = Path("runs/cold_start")
    """Where the result is kept, under the hash of what made it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache_dir", Path(self.cache_dir))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of SAPO. A step is prompts_per_step × group_size completions and num_minibatches optimizer updates."""

    model: str
    """A folder or hub name that from_pretrained loads."""
    run_dir: Path = Path("runs/run")
    """Where config, metrics, samples and checkpoints go."""
    placement: Literal["separate", "colocated"] | None = None
    """GPUs: separate gives learner and engines GPUs of their own, colocated has them take turns on the same ones. Derives
    learner.gpus, rollout.num_engines and rollout.weight_transfer from the GPUs that there are and rollout.gpus_per_engine, and
    prints them. Default: what those options say."""
    steps: int = 100
    """Steps: each one generates, scores, learns and syncs."""
    seed: int = 0
    """Seeds the order of prompts and every sampled token."""
    reward: str | None = None
    """FILE.py:FUNCTION, a reward of yours that replaces the recipe's."""
    selection: str | None = None
    """A selected.jsonl that recipes.select made of the training prompts: no others are drawn."""
    resume: str | None = None
    """auto (the newest checkpoint of run_dir, if any) or a checkpoint folder."""

    prompts_per_step: int = 16
    """Prompts of each step."""
    group_size: int = 8
    """Completions per prompt, whose rewards are compared with each other; at least 2."""
    num_minibatches: int = 2
    """Optimizer updates of each step; each takes an equal share of the prompts."""
    max_staleness: int = 0
    """Policy versions that a token may be behind the learner. 0: strictly on-policy, engines and learner take turns; 1 or more:
    engines generate ahead while the learner trains."""
    refill_prompts: int = 0
    """Prompts that a step may draw besides its own, in place of those whose rewards are all equal."""
    objective: str = "sapo"
    """sapo, grpo, gspo, dapo, dr_grpo, cispo, vespo, policy_gradient, or FILE.py:FUNCTION, an objective of yours."""
    tau_pos: float = 1.0
    """SAPO's gate temperature for positive advantages."""
    tau_neg: float = 1.05
    """SAPO's gate temperature for negative (and zero) advantages."""
    clip_low: float | None = None
    """How far a ratio may fall below 1 in objectives that clip. Default: the objective's own."""
    clip_high: float | None = None
    """How far a ratio may rise above 1 in objectives that clip. Default: the objective's own."""
    advantage: AdvantageKind = "group_std"
    """How rewards become advantages: less the group's mean, divided by its std (of the population, or of the sample); less the
    mean alone; less the mean of the others; less the group's mean, divided by the std over the task in this step."""
    kl_coefficient: float = 0.0
    """Weight of a KL penalty to the policy that the run started from; 0: off, and no second copy of the policy."""

    balance_coefficient: float = 0.0
    """MoE only: weight of a loss that keeps each sequence's tokens spread over the experts; 0: off."""

    checkpoint_every: int = 50
    """Steps between checkpoints; the last step always writes one. 0: the last step only."""
    keep_checkpoints: int = 2
    """Older checkpoints are deleted; 0 keeps all."""
    samples_every: int = 10
    """Steps between looks into samples/: the questions, answers and scores of a few prompts."""
    reward_timeout: float = 10.0
    """Seconds that one reward call may take."""
    reward_memory_gib: float = 8.0
    """Memory, in GiB, that one reward worker may take for its calls: beyond, they raise a MemoryError; 0: any."""
    reward_cache: int = 4096
    """Verdicts that each reward worker keeps: the same completion of the same prompt is scored once. 0: none, for rewards that do
    not depend on them alone."""
    reward_workers: int = 1
    """Processes that score completions."""
    check_references: bool = True
    """Before the start, scores some reference answers as if they were responses, and refuses a task whose reward accepts none of
    its own. Switch it off for rewards that ask for more than an answer. With an environment it is off."""
    wandb: WandbMode = "auto"
    """'auto' is online if the user is logged in, else offline."""

    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        # Who writes a recipe need not remember which of the two is a Path.
        object.__setattr__(self, "model", str(self.model))
        object.__setattr__(self, "run_dir", Path(self.run_dir))


def plain_config(config: Any) -> dict[str, Any]:
    """The choices as JSON has them: what `config.json` and checkpoints keep."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain


POSITIVE = """
    steps prompts_per_step num_minibatches tau_pos tau_neg reward_timeout reward_workers optimizer.learning_rate optimizer.eps
    optimizer.max_grad_norm rollout.num_engines rollout.threads_per_engine rollout.max_tokens rollout.temperature
    rollout.kv_cache_gib rollout.gpu_memory_utilization rollout.max_running rollout.request_timeout rollout.engine_timeout
    rollout.start_timeout
    rollout.max_turns rollout.episode_timeout rollout.environment_timeout
    learner.cpu_ranks learner.threads lora.alpha eval.num_samples
    teacher.coefficient teacher.num_engines teacher.threads_per_engine teacher.kv_cache_gib teacher.gpu_memory_utilization
    teacher.max_batched_tokens
    """.split()
POSITIVE_IF_ANY = """
    clip_low clip_high rollout.min_image_pixels rollout.max_image_pixels rollout.max_video_pixels
    """.split()
NOT_NEGATIVE = """
    max_staleness refill_prompts rollout.max_failures
    kl_coefficient balance_coefficient correction.token_cap checkpoint_every keep_checkpoints samples_every optimizer.weight_decay
    optimizer.warmup_updates optimizer.decay_updates lora.rank rollout.gpus_per_engine rollout.max_images
    rollout.max_videos rollout.max_turn_tokens learner.gpus eval.every eval.num_prompts
    reward_memory_gib reward_cache teacher.reward_weight teacher.gpus_per_engine
    """.split()


def check_config(config: TrainConfig) -> None:
    """Refuses choices that cannot work, before anything is loaded.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    for name in POSITIVE:
        if not attrgetter(name)(config) > 0:
            raise ValueError(f"{name} must be > 0, got {attrgetter(name)(config)}")
    for name in NOT_NEGATIVE:
        if not attrgetter(name)(config) >= 0:
            raise ValueError(f"{name} must be >= 0, got {attrgetter(name)(config)}")
    if ":" not in config.objective and config.objective not in OBJECTIVE_NAMES:
        known = ", ".join(OBJECTIVE_NAMES)
        raise ValueError(f"objective must be one of {known}, or FILE.py:FUNCTION, got {config.objective!r}")
    for name in POSITIVE_IF_ANY:
        if (value := attrgetter(name)(config)) is not None and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    if (rate := config.optimizer.vision_learning_rate) is not None and not rate >= 0:
        raise ValueError(f"optimizer.vision_learning_rate must be >= 0, got {rate}")
    _check_lora(config)
    _check_teacher(config)
    for name in ("token_band", "sequence_band"):
        band = getattr(config.correction, name)
        if band is not None and not 0 <= band[0] < 1 < band[1]:
            raise ValueError(f"correction.{name} must be a band around 1, such as 0.5 2.0, got {band[0]} {band[1]}")
    rollout, learner = config.rollout, config.learner
    if learner.offload and not learner.gpus:
        raise ValueError("learner.offload = True moves nothing with learner.gpus = 0: leave it out")
    if learner.routing_replay == "R3" and not rollout.gpus_per_engine:
        raise ValueError(
            "learner.routing_replay = R3 with rollout.gpus_per_engine = 0: vLLM tells its experts on GPUs alone; use R2"
        )
    if config.max_staleness and rollout.shares_gpus:
        raise ValueError(
            f"max_staleness = {config.max_staleness} has engines generate while the learner trains, but with placement colocated "
            "(rollout.weight_transfer ipc) they sleep then: use max_staleness 0, or placement separate"
        )
    if config.group_size < 2 and (config.teacher.model is None or config.teacher.reward_weight):
        raise ValueError(
            f"group_size must be >= 2, got {config.group_size}: an advantage compares a completion with its siblings"
        )
    if config.num_minibatches > config.prompts_per_step:
        raise ValueError(
            f"num_minibatches = {config.num_minibatches} exceeds prompts_per_step = {config.prompts_per_step}: "
            "each minibatch takes whole groups"
        )
    if rollout.max_tokens >= rollout.max_model_len:
        raise ValueError(
            f"rollout.max_tokens = {rollout.max_tokens} leaves no room for a prompt in "
            f"rollout.max_model_len = {rollout.max_model_len}: raise max_model_len or lower max_tokens"
        )
    if learner.microbatch_tokens < rollout.max_model_len:
        raise ValueError(
            f"learner.microbatch_tokens = {learner.microbatch_tokens} cannot hold the longest sequence, "
            f"rollout.max_model_len = {rollout.max_model_len}: raise the one or lower the other"
        )


def _check_teacher(config: TrainConfig) -> None:
    """`check_config` for what concerns a teacher."""
    teacher = config.teacher
    if teacher.model is None:
        changed = [f.name for f in fields(teacher) if getattr(teacher, f.name) != f.default]
        if changed:
            named = f"teacher.{changed[0]} = {getattr(teacher, changed[0])}"
            raise ValueError(f"{named} without a teacher: name one with teacher.model, or leave it out")
        return
    if bool(teacher.gpus_per_engine) != bool(config.rollout.gpus_per_engine):
        raise ValueError(
            f"teacher.gpus_per_engine = {teacher.gpus_per_engine} with rollout.gpus_per_engine = "
            f"{config.rollout.gpus_per_engine}: vLLM is installed for GPUs or for CPUs; give both engines GPUs, or none"
        )
    if config.refill_prompts and not teacher.reward_weight:
        raise ValueError(
            f"refill_prompts = {config.refill_prompts} sets groups aside whose rewards are equal, and a teacher alone teaches "
            "these as well as others: leave it out, or give rewards a teacher.reward_weight"
        )


def _check_lora(config: TrainConfig) -> None:
    """`check_config` for what concerns adapters."""
    if config.lora.rank and not config.lora.parts:
        raise ValueError(
            f"lora.rank = {config.lora.rank} with no lora.parts trains nothing: name language, vision or experts"
        )
    if config.lora.rank and "vision" in config.lora.parts and config.optimizer.vision_learning_rate == 0:
        raise ValueError(
            "lora.parts has vision, but optimizer.vision_learning_rate = 0 freezes the tower: leave out one of the two"
        )
    if config.lora.sync == "adapter" and (not config.lora.rank or config.lora.parts != ("language",)):
        raise ValueError(
            f"lora.sync = adapter is for adapters of the language model, got lora.rank = {config.lora.rank}, lora.parts = "
            f"{' '.join(config.lora.parts)}: use lora.sync merged, or lora.parts language with a rank"
        )
    if config.lora.sync == "adapter" and config.lora.rank > max(ENGINE_RANKS):
        raise ValueError(
            f"lora.rank = {config.lora.rank} is more than vLLM's {max(ENGINE_RANKS)}: lower it or use lora.sync merged"
        )
    if config.max_staleness and config.lora.sync == "adapter" and config.rollout.in_flight == "keep":
        raise ValueError(
            f"lora.sync = adapter with max_staleness = {config.max_staleness}: a running completion cannot change its adapters: "
            "use rollout.in_flight requeue, or lora.sync merged"
        )
