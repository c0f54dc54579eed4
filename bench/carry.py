"""Measures the error of transplanted language weights: SmolLM2-135M-Instruct in Qwen3-VL's text architecture, in float32.

    python -m bench.carry

It compares the scale that policies.small.transplant uses with smaller ones. The first run downloads 94 MiB.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from policies.loading import load_policy, load_processor
from policies.small.language_models import load_language_model, smollm2_weights
from policies.small.transplant import text_scale, transplant

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "docs/rewards.md", "rl/loop.py")
SMALLER = (10, 15, 20)
"""Exponents of smaller scales, powers of two."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    characters: int = 4000
    """Characters of each text."""
    out: Path = Path("runs/bench_carry.json")
    """File of the numbers."""


def differences(source: PreTrainedModel, policy: PreTrainedModel, token_ids: torch.Tensor) -> dict[str, float]:
    """Returns the difference of two models on a text, in nats: over the vocabulary, over the text's tokens, and as KL."""
    with torch.no_grad():
        expected_LV = source(token_ids).logits[0].log_softmax(-1)
        found_LV = policy(input_ids=token_ids).logits[0].log_softmax(-1)[:, : expected_LV.shape[1]]
    apart_LV = expected_LV - found_LV
    text_L = apart_LV[:-1].gather(1, token_ids[0, 1:, None]).abs()
    return {
        "any word, max": float(apart_LV.abs().max()),
        "own words, max": float(text_L.max()),
        "own words, mean": float(text_L.mean()),
        "KL, mean": float((expected_LV.exp() * apart_LV).sum(-1).mean()),
        "other best word": float((expected_LV.argmax(-1) != found_LV.argmax(-1)).double().mean()),
    }


def measure(source: PreTrainedModel, tokenizer, scale: float, characters: int) -> dict[str, float]:
    """Returns the largest differences over several texts."""
    with tempfile.TemporaryDirectory() as scratch:
        transplant(source, tokenizer, scratch, scale=scale)
        policy, words = load_policy(scratch, dtype=torch.float32, device="cpu"), load_processor(scratch).tokenizer
        texts = [words.encode((ROOT / name).read_text()[:characters], add_special_tokens=False) for name in TEXTS]
        found = [differences(source, policy, torch.tensor([token_ids])) for token_ids in texts]
    return {name: max(each[name] for each in found) for name in found[0]}


def main(options: Options) -> None:
    """Transplants SmolLM2 at several scales, and prints the differences."""
    source, tokenizer = load_language_model(smollm2_weights())
    powers = (*SMALLER, round(math.log2(text_scale(source.config))))
    rows = {power: measure(source, tokenizer, 2.0**power, options.characters) for power in powers}
    table = Table("c", *next(iter(rows.values())))
    for power, row in rows.items():
        table.add_row(f"2^{power}", *(f"{value:.1e}" for value in row.values()))
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
