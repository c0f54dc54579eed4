"""Seconds to send a policy's weights to N engines, phase by phase, compared with a plain copy of the same bytes.

    python -m bench.weight_sync --megabytes 500 --engines 2

`memory copy` is one `copy_` between two buffers of one process. `transport` is the copy into the slab, once for all engines of a
node. `vLLM load` is vLLM's loading and repacking, in all engines at once.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from policies.export import exported_metadata, exported_parameters
from policies.loading import load_policy, load_processor, vision_token_ids
from policies.small.qwen3_vl import Kind, save_small_policy
from rollout.cluster import local_ray
from rollout.config import RolloutConfig
from rollout.engine.spec import EngineSpec
from rollout.pool.engine_pool import EnginePool
from rollout.weights.senders import SharedMemorySender
from rollout.weights.source import WeightSource
from rollout.weights.update import RayEngineClient


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options."""

    megabytes: int = 500
    """Approximate size of the policy in float32."""
    engines: int = 1
    """vLLM engines on this machine."""
    kind: Kind = "dense"
    """Architecture."""
    repeats: int = 5
    """Measured syncs, after one to warm up."""
    output: Path = Path("bench/results/weight_sync.json")
    """The file of the results."""


def main(options: Options) -> None:
    """Measures, prints a table, writes JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_small_policy(Path(scratch), kind=options.kind, seed=0, **text_fields(options.megabytes))
        model = load_policy(folder, dtype=torch.float32, device="cpu")
        config = RolloutConfig(num_engines=options.engines, dtype="float32", max_tokens=8, max_model_len=128)
        with local_ray():
            banned = vision_token_ids(load_processor(folder))
            spec = EngineSpec(model=folder, config=config, backend="shared_memory", banned_ids=tuple(banned))
            pool = EnginePool(spec)
            try:
                rows = measure(options, model, pool)
            finally:
                pool.close()
    report(options, rows)


def text_fields(megabytes: int) -> dict[str, int]:
    """Returns a text config of about that size. Each layer has 5.5M parameters, 22 MB."""
    return {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "num_hidden_layers": max(1, round(megabytes / 22)),
    }


def measure(options: Options, model: torch.nn.Module, pool: EnginePool) -> list[dict[str, float]]:
    """Returns one row of seconds per sync."""
    source = WeightSource(
        metadata=partial(exported_metadata, model), tensors=partial(exported_parameters, model), dtype=torch.float32
    )
    sender = SharedMemorySender(source, RayEngineClient(config=pool.config, engines=pool.addresses))
    plain_from = torch.ones(sender.slab.nbytes, dtype=torch.uint8)
    plain_to = torch.zeros_like(plain_from)
    rows = []
    for version in range(1, options.repeats + 2):
        start = time.perf_counter()
        plain_to.copy_(plain_from)
        plain = time.perf_counter() - start
        metrics = sender.send_weights(version)
        rows.append({"memory_copy": plain, **{name.removeprefix("sync/"): value for name, value in metrics.items()}})
    return rows[1:]


def report(options: Options, rows: list[dict[str, float]]) -> None:
    """Prints medians. The ratio is the median over all syncs."""
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    ratio = statistics.median(row["copy_seconds"] / row["memory_copy"] for row in rows)
    table = Table("phase", "seconds", "GB/s", title=f"{median['bytes'] / 1e6:.0f} MB, {options.engines} engine(s)")
    for label, name in (
        ("memory copy", "memory_copy"),
        ("transport", "copy_seconds"),
        ("vLLM load", "load_seconds"),
        ("whole sync", "seconds"),
    ):
        table.add_row(label, f"{median[name]:.3f}", f"{median['bytes'] / median[name] / 1e9:.2f}")
    Console().print(table, f"transport / memory copy: {ratio:.2f}", highlight=False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"ratio": ratio, "median": median, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
