"""Measures memory and time of log-probabilities over a large vocabulary: in chunks, and by autograd over all logits.

    python -m bench.logprobs --tokens 4096 --vocabulary 151936

Each variant runs in a separate process, forward and backward, with entropies. Peak memory is counted above that of the hidden
states, the output embedding and the idle process.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from policies.logprobs import token_logprobs

VARIANTS = ("naive", "chunked")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    tokens: int = 4096
    """Response tokens."""
    vocabulary: int = 151936
    """Size of the vocabulary; default: Qwen3-VL's."""
    hidden: int = 2048
    """Hidden size; default: Qwen3-VL-2B's."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of hidden states and output embedding."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the tensors."""
    threads: int = 2
    """CPU threads."""
    repeats: int = 3
    """Passes; the fastest counts."""
    output: Path = Path("bench/results/logprobs.json")
    """File of the figures."""


def main(options: Options) -> None:
    """Measures, prints a table, and writes JSON."""
    context = multiprocessing.get_context("spawn")
    rows = {}
    for variant in VARIANTS:
        with context.Pool(1) as pool:
            rows[variant] = pool.apply(measure, (options, variant))
    naive, chunked = rows["naive"], rows["chunked"]
    ratios = {name: chunked[name] / naive[name] for name in ("bytes", "seconds")}
    table = Table("", "peak, GB", "seconds", title=f"{options.tokens} x {options.vocabulary}, {options.dtype}")
    for variant, row in rows.items():
        table.add_row(variant, f"{row['bytes'] / 1e9:.2f}", f"{row['seconds']:.2f}")
    apart = abs(chunked["checksum"] / naive["checksum"] - 1)
    Console().print(
        table,
        f"chunked / naive: memory {ratios['bytes']:.3f} (1/{1 / ratios['bytes']:.1f}), time {ratios['seconds']:.2f}; "
        f"gradients differ by {apart:.1e}",
        highlight=False,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"ratios": ratios, **rows}, indent=1))


def measure(options: Options, variant: str) -> dict[str, float]:
    """Returns peak bytes above the inputs, seconds of one forward and backward pass, and a checksum of the gradients."""
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    # In place and in the final precision: a temporary tensor would raise the peak.
    hidden_NH = torch.empty(options.tokens, options.hidden, dtype=dtype).normal_(generator=generator)
    weight_VH = torch.empty(options.vocabulary, options.hidden, dtype=dtype).normal_(
        std=options.hidden**-0.5, generator=generator
    )
    hidden_NH, weight_VH = hidden_NH.to(device).requires_grad_(), weight_VH.to(device).requires_grad_()
    targets_N = torch.randint(0, options.vocabulary - 100, (options.tokens,), generator=generator).to(device)
    banned = torch.tensor([options.vocabulary - 2, options.vocabulary - 1], device=device)
    compute = {"naive": naive_logprobs, "chunked": token_logprobs}[variant]
    seconds = []
    before = psutil.Process().memory_info().rss if device.type == "cpu" else torch.cuda.memory_allocated(device)
    for _ in range(options.repeats):
        hidden_NH.grad = weight_VH.grad = None
        begin = time.perf_counter()
        logprobs_N, _ = compute(hidden_NH, weight_VH, targets_N, banned)
        logprobs_N.mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    bytes_above = peak(device) - before  # before the checksum, which needs memory, too
    checksum = float(hidden_NH.grad.double().norm() + weight_VH.grad.double().norm())
    return {"bytes": bytes_above, "seconds": min(seconds), "checksum": checksum}


def naive_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, banned_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes the textbook formula with autograd."""
    logits_NV = (hidden_NH @ weight_VH.T).float().index_fill(1, banned_ids, -1e30)
    log_p_NV = logits_NV.log_softmax(1)
    with torch.no_grad():
        entropies_N = -(log_p_NV.exp() * log_p_NV).sum(1)
    return log_p_NV.gather(1, targets_N[:, None])[:, 0], entropies_N


def peak(device: torch.device) -> int:
    """Returns the peak bytes of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
