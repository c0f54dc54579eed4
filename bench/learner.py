"""Measures one SAPO step of the learner on random rollouts: tokens per second, model-FLOP utilisation, peak memory.

    python -m bench.learner                                          the small policy, on a CPU
    python -m bench.learner --shape 2B --device cuda --response-tokens 1024 --learner.gradient-checkpointing

The published shapes have random weights. It imports neither Ray nor vLLM. Model FLOPs per parameter and token are 6 for an update
and 2 for the old policy's pass, plus those of attention. Recomputation by gradient checkpointing does not count.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import Qwen3VLConfig

from policies.export import save_policy
from policies.model_sizes import published_config
from policies.small.qwen3_vl import TOKEN_IDS, small_config, small_model, small_processor
from rl.config import LearnerConfig, LoraConfig, OptimizerConfig, RolloutConfig, TrainConfig
from rl.learner import Learner
from rl.samples import Sample
from rollout.rendering import expand_media

Shape = Literal["small", "2B", "4B", "8B"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    shape: Shape = "small"
    """The policy: small, or a published size."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the learner."""
    policy: Path | None = None
    """Folder that keeps the policy for later measurements; default: a temporary folder."""
    prompts: int = 8
    """Prompts per step."""
    group_size: int = 8
    """Completions per prompt."""
    response_tokens: int = 64
    """Longest response, in tokens; lengths are uniform from half of it."""
    image_side: int = 256
    """Pixels per side of each prompt's picture."""
    steps: int = 3
    """Measured steps, after one warm-up step."""
    peak_teraflops: float = 989.0
    """Peak TFLOP/s of the device in its dtype; 989 is an H100's or H200's dense bfloat16."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(dtype="bfloat16", threads=2))
    output: Path = Path("bench/results/learner.json")
    """File of the figures."""


def main(options: Options) -> None:
    """Measures, prints a table, and writes JSON."""
    if options.learner.offload:  # FSDP2 on one rank
        dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = saved_policy(options, options.policy or Path(scratch))
        config = TrainConfig(
            model=str(folder),
            prompts_per_step=options.prompts,
            group_size=options.group_size,
            optimizer=OptimizerConfig(learning_rate=1e-6),
            rollout=RolloutConfig(max_tokens=options.response_tokens),
            lora=options.lora,
            learner=replace(options.learner, gpus=int(options.device == "cuda")),
        )
        learner = Learner(config, folder)
    groups = rollout(options)
    learner.step(groups)
    begin = time.perf_counter()
    reports = [learner.step(groups).metrics for _ in range(options.steps)]
    seconds = (time.perf_counter() - begin) / options.steps
    report(options, learner, groups, seconds, reports[-1])


def saved_policy(options: Options, folder: Path) -> Path:
    """Returns the policy's folder; writes the policy unless it exists."""
    if not (folder / "config.json").exists():
        with torch.device(options.device):
            model = small_model(model_config(options.shape), seed=0)
        save_policy(model, small_processor(), folder, dtype=torch.bfloat16)
        del model
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return folder


def model_config(shape: Shape) -> Qwen3VLConfig:
    """Returns the small policy's config, or a published one with the small tokenizer's ids."""
    if shape == "small":
        return small_config("dense")
    published, small = published_config(shape), small_config("dense")
    ids = {name: getattr(small, name) for name in published if name.endswith("_token_id")}
    return Qwen3VLConfig(**published | ids)


def rollout(options: Options) -> list[list[Sample]]:
    """Returns groups of random responses, with one random picture per group."""
    rng = np.random.default_rng(0)
    groups = []
    for number in range(options.prompts):
        pixels = rng.integers(0, 256, (options.image_side, options.image_side, 3), dtype=np.uint8)
        images = [Image.fromarray(pixels)]
        question = [*b"What is this?", TOKEN_IDS["<|vision_start|>"], TOKEN_IDS["<|image_pad|>"]]
        prompt = expand_media(small_processor(), question, images, [])
        groups.append([sample(rng, number, prompt, images, options) for _ in range(options.group_size)])
    return groups


def sample(rng: np.random.Generator, number: int, prompt: np.ndarray, images: list[Any], options: Options) -> Sample:
    """Returns one response of random letters."""
    length = int(rng.integers(options.response_tokens // 2, options.response_tokens + 1))
    token_ids = np.concatenate([prompt, rng.integers(0, 256, length)]).astype(np.int32)
    return Sample(
        prompt_id=str(number),
        token_ids=token_ids,
        loss_mask=np.arange(len(token_ids)) >= len(prompt),
        rollout_logprobs=np.full(len(token_ids), -5.0, np.float32),
        advantage=float(rng.normal()),
        images=images,
    )


def report(
    options: Options, learner: Learner, groups: list[list[Sample]], seconds: float, metrics: dict[str, float]
) -> None:
    """Prints the table and writes the figures."""
    lengths = np.array([len(sample.token_ids) for group in groups for sample in group])
    text = learner.model.config.text_config
    parameters = sum(p.numel() for name, p in learner.model.named_parameters() if ".visual." not in name)
    computed, squares = in_layers(learner, groups)
    # A causal token attends to half of its sequence on average: 2 products of 2 FLOPs per layer, head and channel.
    attention = 2 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * squares
    forward = 2.0 * parameters * computed + attention
    passes = 3 + (learner.options.num_minibatches - 1) / learner.options.num_minibatches
    teraflops = passes * forward / seconds / 1e12
    figures = {
        "parameters": float(sum(p.numel() for p in learner.model.parameters())),
        "tokens": float(lengths.sum()),
        "tokens_in_layers": computed,
        "seconds": seconds,
        "tokens_per_second": float(lengths.sum()) / seconds,
        "teraflops": teraflops,
        "utilisation": teraflops / options.peak_teraflops,
        "peak_bytes": metrics["memory/learner_peak_bytes"],
    }
    table = Table(
        "", "", title=f"{options.shape} on {options.device}, {options.learner.dtype}, torch {torch.__version__}"
    )
    for name, value in figures.items():
        table.add_row(name, f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}")
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=1))


def in_layers(learner: Learner, groups: list[list[Sample]]) -> tuple[float, float]:
    """Returns the tokens that pass through the layers, and the sum of squared lengths that attention takes for them."""
    computed = squares = 0.0
    for batch in learner.make_microbatches([sample for group in groups for sample in group]):
        computed += len(batch.row.tokens_S)
        if batch.row.calls:
            own, whole = batch.row.query_bounds.diff(), batch.row.key_bounds.diff()
            squares += float((whole**2 - (whole - own) ** 2).sum())
        else:  # padded
            squares += len(batch.row.tokens_S) * batch.row.places_BL.shape[1]
    return computed, squares


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
