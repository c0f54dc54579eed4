"""What a run will take of each GPU, reckoned before anything starts: learner, engine, and whether both fit.

The learner's activations are what autograd keeps, counted tensor by tensor for the kernels that run on a GPU (packed attention,
fused norms); tests hold the sum against measured peaks.

H, I: the model's hidden and intermediate size; Q, K: width of all query and of all key heads; h, i: of the vision tower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.console import Group as Lines
from rich.table import Table

from policies.model_sizes import MERGE, ModelShape, shape_of_checkpoint
from rl.config import LearningOptions, LoraConfig, TrainConfig
from rollout.config import RolloutConfig

GIB = 2**30
STATE = {"weights": 4, "gradients": 4, "AdamW's moments": 8}
"""Bytes per parameter: master weights are float32."""
LOGIT_BYTES = (1 << 25) * (2 + 4 + 2)
"""One chunk of logits: as multiplied, in float32, and as slopes."""
PIXELS_PER_TOKEN = 32 * 32
HEADROOM = 0.06
"""Share of a GPU that is left to CUDA's context, NCCL, and what torch's allocator cannot hand out in one piece."""
ENGINE_OVERHEAD = 2 * GIB
"""vLLM's CUDA graphs, workspaces and context."""
ASSUMED_GIB = 80.0
"""Of a GPU, where the driver of a run has none itself."""
ASLEEP = 1.5 * GIB
"""What a sleeping engine keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """One thing that takes memory.

    Attributes:
        what: Its name.
        bytes: Of one GPU.
        why: How it is reckoned.
    """

    what: str
    bytes: float
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a run takes.

    Attributes:
        device_bytes: A GPU's memory.
        learner: What a rank keeps, then what it takes at its peak.
        kept: How many of these lines it keeps between steps.
        host: What a node's host memory holds.
        engine: What an engine takes of each of its GPUs; nothing where there is none.
        shared: Whether learner and engines take turns on the same GPUs.
        sequences: How many of the longest sequences an engine's cache holds at once.
        problems: Why it does not fit, each with a remedy; empty if it does.
    """

    device_bytes: float
    learner: Sequence[MemoryItem]
    kept: int
    host: Sequence[MemoryItem]
    engine: Sequence[MemoryItem] = ()
    shared: bool = False
    sequences: float = math.inf
    problems: Sequence[str] = ()

    @property
    def learner_peak(self) -> float:
        """Bytes of a rank's GPU while it learns."""
        return sum(line.bytes for line in self.learner)

    @property
    def learner_kept(self) -> float:
        """Bytes that a rank keeps on its GPU between steps."""
        return sum(line.bytes for line in self.learner[: self.kept])

    @property
    def engine_total(self) -> float:
        """Bytes of each of an engine's GPUs."""
        return sum(line.bytes for line in self.engine)

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problems


def plan_memory(config: TrainConfig, shape: ModelShape, *, device_gib: float, gpus_per_node: int = 8) -> MemoryPlan:
    """Reckons what a run on GPUs takes.

    Args:
        config: The run's choices, placement derived.
        shape: The model's.
        device_gib: Memory of a GPU, in GiB; 80 for an H100, 140 for an H200.
        gpus_per_node: GPUs of a machine, which share its host memory.

    Raises:
        ValueError: The config puts learner or engines on the CPU.
    """
    _require_gpus("rollout.gpus_per_engine", config.rollout.gpus_per_engine)
    engine, sequences = _engine(config, shape, device_gib * GIB)
    learner = plan_learner(
        config, shape, group_size=config.group_size, device_gib=device_gib, gpus_per_node=gpus_per_node
    )
    plan = replace(learner, engine=engine, shared=config.rollout.shares_gpus, sequences=sequences)
    return replace(plan, problems=_problems(config, plan))


def plan_learner(
    config: LearningOptions, shape: ModelShape, *, group_size: int, device_gib: float, gpus_per_node: int = 8
) -> MemoryPlan:
    """Estimates the memory of a learner on GPUs without engines; see `plan_memory`.

    Args:
        config: The learner's options.
        shape: The model's sizes.
        group_size: Completions per prompt, which share its images; 1 in supervised learning.
        device_gib: Memory of a GPU, in GiB.
        gpus_per_node: GPUs of a machine.
    """
    _require_gpus("learner.gpus", config.learner.gpus)
    states, peak = state_memory(config, shape), peak_memory(config, shape, group_size)
    kept = [] if config.learner.offload else states
    plan = MemoryPlan(
        device_bytes=device_gib * GIB,
        learner=[*kept, *peak],
        kept=len(kept),
        host=_host(config, shape, states, gpus_per_node),
    )
    return replace(plan, problems=_problems(config, plan))


def _require_gpus(option: str, count: int) -> None:
    if not count:
        raise ValueError(f"{option} = 0: a memory plan is of GPUs; set it, or a placement")


def image_tokens(rollout: RolloutConfig) -> int:
    """Image and video tokens of a prompt, at most: as their pixels are bounded, or as much as the context has room for."""
    room = rollout.max_model_len - rollout.max_tokens
    if rollout.max_image_pixels is None or (rollout.max_videos and rollout.max_video_pixels is None):
        return room
    pixels = rollout.max_images * rollout.max_image_pixels + rollout.max_videos * (rollout.max_video_pixels or 0) / 2
    return min(room, round(pixels / PIXELS_PER_TOKEN))


def adapter_parameters(lora: LoraConfig, shape: ModelShape) -> int:
    """Parameters of LoRA's adapters: rank × (in + out) for each matrix."""
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, wide = shape.hidden, shape.expert_intermediate
    vision = shape.vision
    of = {
        "language": shape.layers
        * (2 * (hidden + width) + 2 * (hidden + kv) + (0 if shape.experts else 3 * (hidden + shape.intermediate))),
        "vision": vision.layers * (5 * vision.hidden + vision.hidden + 2 * (vision.hidden + vision.intermediate)),
        "experts": shape.layers * shape.experts * (hidden + 2 * wide + hidden + wide),
    }
    return lora.rank * sum(of[part] for part in lora.parts)


def state_memory(config: LearningOptions, shape: ModelShape) -> list[MemoryItem]:
    """What every rank keeps, wherever that is."""
    ranks = config.learner.gpus
    learning = shape.parameters - (shape.tower if config.optimizer.vision_learning_rate == 0 else 0)
    added = 0
    if config.lora.rank:
        learning = added = adapter_parameters(config.lora, shape)
    of = {"weights": shape.parameters + added, "gradients": learning, "AdamW's moments": learning}
    over = f" / {ranks} ranks" if ranks > 1 else ""
    lines = [
        MemoryItem(what=name, bytes=size * of[name] / ranks, why=f"{size} B × {of[name] / 1e9:.2f}G{over}")
        for name, size in STATE.items()
    ]
    if config.kl_coefficient and not config.lora.rank:
        lines.append(
            MemoryItem(
                what="reference", bytes=4 * shape.parameters / ranks, why=f"4 B × {shape.parameters / 1e9:.2f}G{over}"
            )
        )
    return lines


def peak_memory(config: LearningOptions, shape: ModelShape, group_size: int) -> list[MemoryItem]:
    """What a rank takes besides, at the worst moment of a microbatch: in the backward pass of the last layer."""
    learner = config.learner
    tokens, size = learner.microbatch_tokens, 4 if learner.dtype == "float32" else 2
    patches = MERGE * _images_at_once(config, group_size)
    sharded = learner.gpus > 1 or learner.offload
    root = shape.embedding * (1 if shape.tied else 2) + shape.vision.rest
    trains = 0 if config.lora.rank else 1
    if sharded:
        # One layer at work, the next on its way; and what belongs to no layer, whole from the first layer to the last.
        gathered = size * (root + 2 * shape.layer)
        # FSDP2 keeps a layer's gradients as computed and as added up, and the root's until the end.
        gradients = trains * ((size + 4) * shape.layer + size * root)
        copies = MemoryItem(what="gathered weights", bytes=gathered, why="2 layers, embeddings and mergers")
    else:
        kept = 0 if learner.dtype == "float32" else 2 * (shape.parameters - (0 if shape.tied else shape.embedding))
        # With checkpointing the casts of the forward pass are gone when its layers run again.
        copies = MemoryItem(what="working weights", bytes=float(kept), why="cast by autocast")
        gradients = trains * size * shape.embedding
    saved, layer = _layer_bytes(shape, size, sharded)
    block, kept_block = 22 * shape.vision.hidden + 4 * shape.vision.intermediate, 2 * shape.vision.hidden
    if learner.gradient_checkpointing:
        activations = tokens * (shape.layers * saved + layer) + patches * (shape.vision.layers * kept_block)
        why = f"{shape.layers} layers × {saved} B, one × {layer} B, × {tokens} tokens"
    else:
        activations = tokens * shape.layers * layer + patches * shape.vision.layers * block
        why = f"{shape.layers} layers × {layer} B × {tokens} tokens"
    in_flight = size * tokens * (3 * (shape.intermediate if not shape.experts else 0) + 2 * shape.hidden)
    if shape.experts:
        in_flight += size * tokens * shape.experts_per_token * (3 * shape.expert_intermediate + 2 * shape.hidden)
    return [
        copies,
        MemoryItem(what="activations", bytes=activations, why=why),
        MemoryItem(what="gradients in flight", bytes=gradients + in_flight, why="of one layer, and of the embeddings"),
        MemoryItem(
            what="logits", bytes=LOGIT_BYTES + 8 * tokens * shape.hidden, why="a chunk of the vocabulary at a time"
        ),
    ]


def _layer_bytes(shape: ModelShape, size: int, sharded: bool) -> tuple[int, int]:
    """Bytes per token that checkpointing keeps of a layer, and that autograd keeps without it.

    Attention keeps queries before and after their norm, and its output (3Q), likewise keys, and values (3K); an MLP keeps gate, its
    activation, up, and their product (4I); norms keep what comes in, products what comes out of them (2H each).
    """
    residual = size if sharded else 4  # autocast leaves the residual stream in float32
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    mlp = 4 * size * shape.intermediate
    if shape.experts:
        k = shape.experts_per_token
        mlp = k * (2 * size * shape.hidden + 4 * size * shape.expert_intermediate + 38) + 4 * shape.experts
    kept = 2 * (residual + size) * shape.hidden + 3 * size * (width + kv) + 4 * shape.heads + mlp
    return residual * shape.hidden, kept


def _images_at_once(config: LearningOptions, group_size: int) -> int:
    """Tokens of all distinct images of a microbatch: siblings, which lie beside each other, show the same."""
    per_prompt = image_tokens(config.rollout)
    typical = per_prompt + 0.75 * config.rollout.max_tokens
    prompts = math.ceil(config.learner.microbatch_tokens / (group_size * typical)) + 1
    return min(config.learner.microbatch_tokens, prompts * per_prompt)


def _engine(config: TrainConfig, shape: ModelShape, device: float) -> tuple[list[MemoryItem], float]:
    """What vLLM takes of each GPU: all of its share, the cache whatever is left of that."""
    rollout, width = config.rollout, config.rollout.gpus_per_engine
    size = 4 if rollout.dtype == "float32" else 2
    share = rollout.gpu_memory_utilization * device
    over = f" / {width} GPUs" if width > 1 else ""
    weights = size * shape.parameters / width
    mlp = shape.experts_per_token * shape.expert_intermediate if shape.experts else shape.intermediate
    work = (
        ENGINE_OVERHEAD
        + rollout.max_batched_tokens * size * (4 * shape.hidden + 4 * mlp / width)
        + 6 * rollout.max_running * shape.vocabulary
    )
    per_token = shape.kv_token_bytes * size / 2 / min(width, shape.kv_heads)
    cache = max(0.0, share - weights - work)
    sequences = cache / per_token / rollout.max_model_len
    lines = [
        MemoryItem(what="weights", bytes=weights, why=f"{size} B × {shape.parameters / 1e9:.2f}G{over}"),
        MemoryItem(what="at work", bytes=work, why=f"{rollout.max_batched_tokens} tokens at once, CUDA graphs"),
        MemoryItem(
            what="key-value cache",
            bytes=cache,
            why=f"what is left of {rollout.gpu_memory_utilization:.0%}: {cache / per_token:,.0f} tokens, "
            f"{sequences:.1f} sequences of {rollout.max_model_len}",
        ),
    ]
    return lines, sequences


def _host(
    config: LearningOptions, shape: ModelShape, states: Sequence[MemoryItem], gpus_per_node: int
) -> list[MemoryItem]:
    """What a node keeps in host memory."""
    lines = []
    ranks = min(config.learner.gpus, gpus_per_node)
    if config.learner.offload:
        total = ranks * sum(line.bytes for line in states)
        lines.append(MemoryItem(what="the learner's state", bytes=total, why=f"offloaded, of {ranks} ranks"))
    if config.rollout.shares_gpus:
        engines = max(1, ranks // config.rollout.gpus_per_engine)
        size = 4 if config.rollout.dtype == "float32" else 2
        lines.append(
            MemoryItem(
                what="sleeping engines",
                bytes=float(engines * size * shape.parameters),
                why=f"weights of {engines} while the learner learns",
            )
        )
    return lines


def _problems(config: LearningOptions, plan: MemoryPlan) -> list[str]:
    room, found = (1 - HEADROOM) * plan.device_bytes, []
    asleep = ASLEEP if plan.shared else 0.0
    if plan.learner_peak + asleep > room:
        remedies = [
            *(["learner.gradient_checkpointing"] if not config.learner.gradient_checkpointing else []),
            *(["learner.offload"] if not config.learner.offload else []),
            "a smaller learner.microbatch_tokens",
            *(["lora.rank 16"] if not config.lora.rank else []),
            "more GPUs",
        ]
        found.append(
            f"the learner takes {format_gib(plan.learner_peak + asleep)} GiB of each GPU, which has room for {format_gib(room)}: "
            f"{', '.join(remedies)}"
        )
    if plan.shared and plan.learner_kept + plan.engine_total > room:
        found.append(
            f"while engines generate, the learner keeps {format_gib(plan.learner_kept)} GiB of the GPU that they take "
            f"{format_gib(plan.engine_total)} GiB of, and there is room for {format_gib(room)}: learner.offload, or a lower "
            "rollout.gpu_memory_utilization"
        )
    if plan.sequences < 1:
        found.append(
            f"the engine's cache holds {plan.sequences:.2f} sequences of rollout.max_model_len = "
            f"{config.rollout.max_model_len}: more rollout.gpus_per_engine, or a higher rollout.gpu_memory_utilization"
        )
    return found


def format_gib(value: float) -> str:
    """In GiB, to a tenth."""
    return f"{value / GIB:.1f}"


def memory_table(plan: MemoryPlan) -> Lines:
    """A table of each side's lines, and the verdict below."""
    table = Table("", "GiB", "", title=f"memory of a GPU of {format_gib(plan.device_bytes)} GiB", title_justify="left")
    for title, lines, total in (
        ("learner, at its peak", plan.learner, plan.learner_peak),
        ("engine" + (", while the learner waits" if plan.shared else ""), plan.engine, plan.engine_total),
        ("host memory of a node", plan.host, sum(line.bytes for line in plan.host)),
    ):
        if lines:
            table.add_row(f"[bold]{title}", f"[bold]{format_gib(total)}", "")
        for line in lines:
            table.add_row(f"  {line.what}", format_gib(line.bytes), f"[dim]{line.why}")
    verdict = ["[green]fits"] if plan.fits else [f"[bold red]does not fit:[/] {problem}" for problem in plan.problems]
    return Lines(table, *verdict)


def plan_teacher(config: TrainConfig, shape: ModelShape, *, device_gib: float) -> Lines:
    """What an engine of the teacher takes of each of its GPUs, as a table, and the verdict below.

    Args:
        config: The run's choices, with a teacher on GPUs.
        shape: The teacher's.
        device_gib: Memory of a GPU, in GiB.
    """
    lines, sequences = _engine(
        replace(config, rollout=config.teacher.engine_config(config.rollout)), shape, device_gib * GIB
    )
    tokens = config.teacher.max_batched_tokens
    logits = MemoryItem(
        what="logits", bytes=8.0 * tokens * shape.vocabulary, why=f"8 B × {tokens} tokens × the vocabulary"
    )
    total, room = sum(line.bytes for line in (*lines, logits)), (1 - HEADROOM) * device_gib * GIB
    table = Table("teacher", "GiB", "", title=f"a teacher's GPU of {device_gib:.1f} GiB", title_justify="left")
    for line in (*lines, logits):
        table.add_row(line.what, format_gib(line.bytes), f"[dim]{line.why}")
    verdict = "[green]fits"
    if sequences < 1:
        verdict = f"[bold red]does not fit:[/] its cache holds {sequences:.2f} sequences: more teacher.gpus_per_engine"
    elif total > room:
        found = f"{format_gib(total)} GiB of {format_gib(room)}"
        verdict = f"[bold red]does not fit:[/] {found}: a lower teacher.gpu_memory_utilization"
    return Lines(table, verdict)


def print_memory_plan(config: TrainConfig, console: Console) -> None:
    """Prints what a run on GPUs will take, before anything starts; warns if that is more than there is, and goes on.

    Raises:
        ValueError: There is no such model, or it is no Qwen3-VL.
    """
    if not (config.learner.gpus and config.rollout.gpus_per_engine):
        return
    device_gib, measured = this_device()
    console.print(memory_table(plan_memory(config, shape_of_checkpoint(config.model), device_gib=device_gib)))
    if config.teacher.model is not None:
        console.print(plan_teacher(config, shape_of_checkpoint(config.teacher.model), device_gib=device_gib))
    if not measured:
        console.print(f"[dim]GPUs taken to have {ASSUMED_GIB:g} GiB: this machine has none to ask")


def this_device() -> tuple[float, bool]:
    """Memory of this machine's first GPU, in GiB, and whether there is one: else what one is taken to have."""
    import torch

    if not torch.cuda.is_available():
        return ASSUMED_GIB, False
    return torch.cuda.get_device_properties(0).total_memory / GIB, True
