"""Options of a policy and of its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from rollout.config import RESUMABLE, Count, CountOrZero, Dtype, Seconds

Positive = Annotated[float, Gt(0)]
PositiveOrZero = Annotated[float, Ge(0)]


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
    step_timeout: Annotated[Seconds, RESUMABLE] = 3600.0
    """Seconds for a step or a weight sync, after which the learner counts as hanging and is replaced."""
    max_failures: Annotated[CountOrZero, RESUMABLE] = 3
    """Times that new processes replace a learner that dies, hangs or runs out of memory in the same step; then the run stops."""

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
class PolicyOptions:
    """The policy and its training: all that a learner of RL and supervised learning have in common."""

    model: Annotated[str, RESUMABLE]
    """A folder or hub name that from_pretrained loads."""
    seed: int = 0
    """Seeds the order of prompts and every sampled token."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
