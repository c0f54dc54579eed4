"""Options of an update: the objective, its corrections, the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Gt

from rl.config.policy import PolicyOptions, Positive, PositiveOrZero
from rollout.config import RESUMABLE, Count, CountOrZero, RolloutConfig

Aggregation = Literal["sequence_mean", "token_mean", "constant_length"]


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """Corrections of off-policy samples: the mismatch π_old/μ of learner and engine, and the step's own updates. Each is off unless
    set."""

    token_cap: PositiveOrZero = 0.0
    """Truncated importance sampling (TIS): multiplies each token's gradient by min(π_old/μ, token_cap). 0: off. Published runs use
    2 to 5."""
    token_band: tuple[float, float] | None = None
    """Masked importance sampling by token (as in IcePop): drops tokens whose π_old/μ leaves this band, for example 0.5 2.0."""
    sequence_band: tuple[float, float] | None = None
    """Masked importance sampling by sequence: drops responses whose geometric mean of π_old/μ leaves this band, for example
    0.99 1.01."""
    off_policy_threshold: PositiveOrZero = 0.0
    """Off-policy sequence mask: drops responses with a negative advantage whose mean of log π_old/π_θ exceeds this, in nats per
    token. 0: off."""
    off_policy_reference: Literal["learner", "engine"] = "learner"
    """The π_old of that mask: the learner's before the step's updates, or the engine's, which includes their mismatch."""
    target_kl: PositiveOrZero = 0.0
    """Early stopping: a step's updates end once a minibatch shows a KL to the policy that the step began with above this, in nats
    per token. The rest of the step's samples is dropped. 0: off."""


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
class ObjectiveOptions:
    """The objective and its constants."""

    objective: str = "sapo"
    """sapo. Its gate on one side: sapo_one_sided; of the whole response: sapo_sequence; on the log ratio: sapo_log; of another
    shape: sapo_erf, sapo_arctan, sapo_softsign. For comparison: sspo, grpo, gspo, dapo, dr_grpo, cispo, vespo, policy_gradient. Or
    FILE.py:FUNCTION, an objective of yours."""
    tau_pos: Annotated[float | None, Gt(0)] = None
    """Gate temperature of SAPO, its variants and SSPO, for positive advantages. Larger: gradients fade nearer to on-policy. SAPO's
    is 1. Default: the objective's own."""
    tau_neg: Annotated[float | None, Gt(0)] = None
    """The same for negative (and zero) advantages; SAPO's is 1.05."""
    clip_low: Annotated[float | None, Gt(0)] = None
    """Clipping range: how far a ratio may fall below 1, in objectives that clip. Default: the objective's own."""
    clip_high: Annotated[float | None, Gt(0)] = None
    """Clipping range: how far a ratio may rise above 1, in objectives that clip. Default: the objective's own."""
    aggregation: Aggregation | None = None
    """Denominator of the loss. sequence_mean: a mean over sequences of their token means. token_mean: a mean over all tokens.
    constant_length: each sequence's sum over rollout.max_tokens, as in Dr. GRPO. Default: the objective's own."""


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
