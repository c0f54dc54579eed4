"""Parameters that are never trained, as a checkpoint's config lists them."""

from __future__ import annotations

from transformers import PreTrainedModel

from policies.small.transplant import rescaled_parameters


def frozen_parameters(model: PreTrainedModel) -> list[str]:
    """Returns the names of parameters that the checkpoint's config excludes from training (`config.frozen_parameters`)."""
    names = getattr(model.config, "frozen_parameters", None)
    # Transplanted checkpoints written before the field existed lack it.
    return list(rescaled_parameters(model) if names is None else names)
