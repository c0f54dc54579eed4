"""vLLM's plugin hook, named by the package's entry point. vLLM calls it in each of its processes."""

from __future__ import annotations

from rollout.engine.vllm_processes import (
    exit_with_parent,
    exit_without_teardown,
    resend_media_of_cached_prompts,
    unlink_locks_at_once,
)


def register() -> None:
    """Registers the backend `shared_memory`, and installs the hooks of `rollout.engine.vllm_processes`."""
    exit_with_parent()
    exit_without_teardown()
    unlink_locks_at_once()
    resend_media_of_cached_prompts()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "shared_memory" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "shared_memory", "rollout.weights.slab_receiver", "SharedMemoryWeightTransferEngine"
        )
