"""vLLM's arguments for an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollout.config import CPU_BLOCK, ENGINE_RANKS, RolloutConfig
from rollout.engine.spec import EngineSpec
from rollout.rendering import pixel_options

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs


def vllm_arguments(spec: EngineSpec, processor: Any) -> AsyncEngineArgs:
    """Returns vLLM's arguments.

    Args:
        spec: The engine's specification.
        processor: The processor of the policy, with the engine's pixel limits.
    """
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig

    config, is_teacher = spec.config, spec.student is not None
    return AsyncEngineArgs(
        model=str(spec.model),
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        # A seeded request whose prompt is prefilled in pieces kills vLLM's CPU worker. A prompt that does not fit into a step
        # waits for the next. A teacher has no seeds, and takes memory for the logits of all tokens of a step at once.
        max_num_batched_tokens=config.max_batched_tokens
        if is_teacher
        else max(config.max_batched_tokens, config.max_model_len),
        enable_chunked_prefill=is_teacher or config.gpus_per_engine > 0,
        max_num_seqs=config.max_running,
        # Siblings share the whole blocks of their prompt. By default a block has 128 tokens on CPUs, more than a small picture.
        block_size=None if config.gpus_per_engine else CPU_BLOCK,
        tensor_parallel_size=config.workers_per_engine,
        distributed_executor_backend=_executor(config),
        enable_sleep_mode=config.shares_gpus,
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=None if config.gpus_per_engine else config.kv_cache_bytes,
        # Log-probabilities of the sampled distribution: after temperature and bans.
        logprobs_mode="processed_logprobs",
        enforce_eager=not config.gpus_per_engine,
        limit_mm_per_prompt={"image": config.max_images, "video": config.max_videos},
        mm_processor_kwargs=pixel_options(processor),
        generation_config="vllm",  # the checkpoint's top-p and top-k would bias the ratios
        weight_transfer_config=WeightTransferConfig(backend=spec.backend),
        **_lora_options(spec.lora_rank),
        enable_return_routed_experts=spec.return_routed_experts,
        worker_extension_cls=_worker_extension(config, is_teacher=is_teacher),
        disable_log_stats=True,
        use_tqdm_on_load=False,
        seed=0,
    )


def _worker_extension(config: RolloutConfig, *, is_teacher: bool) -> str:
    """Returns the name of the class whose methods vLLM adds to its workers; empty for none."""
    if is_teacher:
        return "rollout.engine.teacher_worker.TeacherWorker"
    return "rollout.weights.summing_worker.SummingWorker" if config.verify_weights else ""


def _executor(config: RolloutConfig) -> Any:
    """Returns the class or name of what runs vLLM's workers."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    if config.workers_per_engine == 1 and not config.gpus_per_engine:
        # For "uni" on CPUs vLLM would start a worker process, to give it the environment of OpenMP, which `engine_environment` has
        # set already. A second process costs 12 CPU seconds per start, most of them imports.
        return UniProcExecutor
    # By default vLLM would start Ray actors for its workers, and nobody would end them.
    return "mp" if config.workers_per_engine > 1 else None


def _lora_options(rank: int) -> dict[str, Any]:
    """Returns vLLM's options for adapters of a rank; none for rank 0."""
    if not rank:
        return {}
    # One adapter in use, and room for its successor during the exchange.
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 2,
        "max_lora_rank": min(known for known in ENGINE_RANKS if known >= rank),
    }
