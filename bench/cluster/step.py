"""The terms of a step's seconds on a cluster: formulas over a policy's shape, the layout, the batch and measured pieces.

A rank is one GPU of the learner. Weights are bfloat16 where they are sent or read, 2 bytes a parameter, and gradients float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cluster.inputs import Assumptions, Measured, Work
from bench.cluster.layout import Layout
from policies.model_sizes import MERGE, ModelShape

PIECE = 2**30
"""Bytes of a piece of weights, vLLM's default; a piece holds at least the largest parameter."""


def multiplied(shape: ModelShape) -> float:
    """Returns the language model's parameters that a token is multiplied with: layers with its own experts, output embedding."""
    idle = (shape.experts - shape.experts_per_token) * 3 * shape.hidden * shape.expert_intermediate
    return shape.layers * (shape.layer - idle) + shape.embedding


def read_parameters(shape: ModelShape, running: float) -> float:
    """Returns the parameters that a decode step reads; of a MoE, the experts that its sequences choose, at random."""
    if not shape.experts:
        return multiplied(shape)
    experts = shape.experts * 3 * shape.hidden * shape.expert_intermediate
    chosen = 1 - (1 - shape.experts_per_token / shape.experts) ** running
    return shape.layers * (shape.layer - experts + chosen * experts) + shape.embedding


def decode_step(shape: ModelShape, width: int, running: float, context: float, a: Assumptions) -> float:
    """Returns the seconds of one decode step of an engine: the longer of its reads and its products, and an overhead.

    Args:
        shape: The policy.
        width: GPUs of the engine.
        running: Sequences in the batch.
        context: Tokens of each in the cache, mean.
        a: Speeds.
    """
    cache = running * context * shape.kv_token_bytes / min(width, shape.kv_heads)
    reads = 2 * read_parameters(shape, running) / width + cache
    products = 2 * multiplied(shape) * running / width
    seconds = max(reads / (a.memory_bandwidth * a.decode_efficiency), products / (a.peak_flops * a.prefill_utilisation))
    return seconds + a.decode_overhead + (2 * shape.layers * a.all_reduce if width > 1 else 0.0)


def generate_seconds(shape: ModelShape, layout: Layout, work: Work, a: Assumptions) -> float:
    """Returns the engines' seconds: prefill, then the longer of the busiest engine's tokens and the longest response alone."""
    prompts = math.ceil(work.prompts / layout.engines)
    samples = prompts * work.group_size
    own = work.prompt_tokens / work.group_size + work.response_tokens  # siblings share the prompt's part of the cache
    running = max(1.0, min(samples, layout.max_running, layout.cache_tokens / own))
    context = work.prompt_tokens + work.response_tokens / 2
    all_tokens = samples * work.response_tokens / running * decode_step(shape, layout.width, running, context, a)
    tail_context = work.prompt_tokens + work.longest_tokens / 2
    longest = work.longest_tokens * decode_step(shape, layout.width, 1, tail_context, a)
    flops = prompts * (2 * multiplied(shape) * work.prompt_tokens + tower_flops(shape, work.image_tokens))
    return flops / (layout.width * a.peak_flops * a.prefill_utilisation) + max(all_tokens, longest)


def tower_flops(shape: ModelShape, image_tokens: float) -> float:
    """Returns the forward FLOPs of the vision tower."""
    return 2.0 * shape.vision.layers * shape.vision.block * MERGE * image_tokens


def forward_flops(shape: ModelShape, prompt: float, responses: Sequence[tuple[float, float]], images: float) -> float:
    """Returns the learner's forward FLOPs for one prompt, which passes through the layers once, and its responses.

    Args:
        shape: The policy.
        prompt: Tokens of the prompt.
        responses: Number of responses and tokens of each.
        images: Image tokens of the prompt.
    """
    tokens = prompt + sum(count * length for count, length in responses)
    squares = prompt**2 + sum(count * ((prompt + length) ** 2 - prompt**2) for count, length in responses)
    attention = 2.0 * shape.layers * shape.heads * shape.head_dim * squares
    return 2 * multiplied(shape) * tokens + attention + tower_flops(shape, images)


def learn_seconds(shape: ModelShape, layout: Layout, work: Work, a: Assumptions) -> dict[str, float]:
    """Returns the learner's terms: products, layers' traffic beyond them, gradients between replicas, offload.

    An update is three forward passes' worth, and the old policy's pass one, which the first minibatch does without. A rank has at
    least one whole sequence in each minibatch, at worst the longest.
    """
    m, old = work.num_minibatches, work.num_minibatches - 1
    whole = work.prompts * forward_flops(
        shape, work.prompt_tokens, [(work.group_size, work.response_tokens)], work.image_tokens
    )
    single = forward_flops(shape, work.prompt_tokens, [(1, work.longest_tokens)], work.image_tokens)
    busiest = max(whole / layout.ranks, m * single)
    utilisation = a.moe_utilisation if shape.experts else a.learner_utilisation
    products = (3 + old / m) * busiest / (a.peak_flops * utilisation)

    tokens = (work.prompts * work.prompt_tokens + work.tokens) / (m * layout.ranks)
    microbatches = max(1, math.ceil(tokens / layout.microbatch_tokens))
    modules = shape.layers + shape.vision.layers + 1
    forwards, backwards = microbatches * (m + old), microbatches * m
    gathers = forwards + backwards
    traffic = ring_seconds(2.0 * shape.parameters, layout.shards, modules, a) * gathers
    traffic += ring_seconds(4.0 * shape.parameters, layout.shards, modules, a) * backwards
    terms = {"learn": products, "layers' traffic": max(0.0, traffic - products), "replicas": 0.0, "offload": 0.0}
    if layout.replicas > 1:
        gradients = 2 * 4.0 * shape.parameters / layout.shards / (a.network * a.link_efficiency)
        latency = 2 * modules * math.ceil(math.log2(layout.replicas)) * a.hop
        terms["replicas"] = backwards * (gradients + latency)
    if layout.offload:
        shard = shape.parameters / layout.shards
        copies = (gathers + backwards) * 4 * shard / a.host_link
        # AdamW reads gradient, weight and two moments, and writes the latter three: 28 bytes for each parameter.
        terms["offload"] = copies + m * 28 * shard * min(a.gpus_per_node, layout.ranks) / a.host_memory
    return terms


def ring_seconds(nbytes: float, ranks: int, collectives: int, a: Assumptions) -> float:
    """Returns the seconds in which a ring gathers, or reduces and scatters, so many bytes, divided into collectives."""
    if ranks == 1:
        return 0.0
    inside = ranks <= a.gpus_per_node
    bandwidth = a.nvlink if inside else min(a.nvlink, a.gpus_per_node * a.network)
    return nbytes * (ranks - 1) / ranks / (bandwidth * a.link_efficiency) + collectives * ranks * a.hop


def sync_seconds(shape: ModelShape, layout: Layout, measured: Measured, a: Assumptions) -> dict[str, float]:
    """Returns the terms of a weight sync: gathering, transport, and the calls of engines, which one process makes.

    Colocated, each rank leaves the weights in its GPU's memory. Every engine is called for each piece, with the addresses of all
    ranks. Separate, rank 0 broadcasts to all engines' GPUs.
    """
    nbytes, tensors = 2.0 * shape.parameters, 11 * shape.layers + 12 * shape.vision.layers
    pieces = math.ceil(nbytes / max(PIECE, 2 * shape.largest))
    engines = layout.engines
    if layout.placement == "colocated":
        calls = 2 * measured.round(engines) + pieces * measured.round(engines, layout.ranks)
        return {
            "gather": ring_seconds(nbytes, layout.shards, tensors, a),
            "engines wake": 2 * nbytes / layout.width / a.host_link,
            "sync calls": calls / a.cpu_speed,
        }
    receivers = engines * layout.width
    return {
        "gather": ring_seconds(nbytes, layout.shards, tensors, a),
        "broadcast": nbytes / (a.network * a.link_efficiency) + pieces * receivers * a.hop,
        "sync calls": 4 * measured.round(engines) / a.cpu_speed,
    }


def serial_seconds(layout: Layout, work: Work, measured: Measured, a: Assumptions) -> dict[str, float]:
    """Returns the driver's seconds for a batch, and the ranks' on their CPUs; each rank unpickles and divides all samples."""
    batch = {"prompts": work.prompts, "samples": work.samples, "tokens": work.tokens, "pixels": work.pixels}
    nodes = math.ceil(layout.ranks / a.gpus_per_node)
    copies = measured.bytes.seconds(**batch) / a.object_store * math.ceil(math.log2(nodes)) if nodes > 1 else 0.0
    shared = measured.prepare.seconds(**batch) / min(layout.ranks, work.prompts)
    return {
        "handle": max(measured.handle.seconds(**batch), work.samples * measured.dispatch) / a.cpu_speed,
        "hand over": measured.hand_over.seconds(**batch) / a.cpu_speed,
        "batch to nodes": copies,
        "divide": measured.divide.seconds(**batch) / a.cpu_speed,
        "prepare": shared / a.cpu_speed,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a step."""

    seconds: Mapping[str, float]
    """Term → its seconds."""
    hidden: frozenset[str]
    """Terms that take place while longer ones do."""

    @property
    def step(self) -> float:
        """Seconds of the step."""
        return sum(seconds for name, seconds in self.seconds.items() if name not in self.hidden)


def step_terms(shape: ModelShape, layout: Layout, work: Work, measured: Measured, a: Assumptions) -> Terms:
    """Returns the terms of a step.

    Colocated, engines and learner take turns. Separate, engines generate the next batch while the learner trains (max_staleness 1),
    and the shorter side is hidden. The driver handles completions while engines generate; `handle` is what exceeds that.
    """
    serial, generate = serial_seconds(layout, work, measured, a), generate_seconds(shape, layout, work, a)
    rollout = {"generate": generate, "handle": max(0.0, serial.pop("handle") - generate)}
    learner = {**serial, **learn_seconds(shape, layout, work, a)}
    shorter = min(rollout, learner, key=lambda terms: sum(terms.values()))
    hidden = frozenset(shorter if layout.placement == "separate" else ())
    return Terms(seconds={**rollout, **learner, **sync_seconds(shape, layout, measured, a)}, hidden=hidden)
