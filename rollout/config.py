"""The options of the rollout engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from annotated_types import Ge, Gt

Count = Annotated[int, Gt(0)]
CountOrZero = Annotated[int, Ge(0)]
Pixels = Annotated[int | None, Gt(0)]
Seconds = Annotated[float, Gt(0)]
RESUMABLE: Final = "may differ between a run and its resume"
"""A marker in a field's annotation: the option does not change what a step learns."""

Dtype = Literal["auto", "float32", "bfloat16"]
Backend = Literal["shared_memory", "nccl", "ipc"]
"""Transport of weights to the engines; see `rollout.weights.senders`."""
CPU_BLOCK = 32
"""Tokens of a block of the key-value cache on CPUs, the fewest that vLLM's kernel takes."""
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM supports. An adapter of another rank uses the next larger one."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """The vLLM engines."""

    num_engines: Annotated[Count, RESUMABLE] = 1
    """Ray actors, each owning one vLLM engine."""
    gpus_per_engine: Annotated[CountOrZero, RESUMABLE] = 0
    """GPUs of each engine (tensor parallel over all of them, on one node); 0 runs vLLM on the CPU."""
    threads_per_engine: Annotated[int | None, Gt(0), RESUMABLE] = None
    """CPU threads of each engine. Default: all cores over the engines, less the learner's share if max_staleness > 0; 1 for a
    policy below 30M parameters, and on GPUs."""
    dtype: Dtype = "auto"
    """Precision of the engine's weights. auto: as learner.dtype."""
    max_tokens: Count = 1024
    """Longest response, in tokens."""
    max_model_len: int = 4096
    """Longest prompt plus response, in tokens."""
    max_batched_tokens: int = 8192
    """Tokens that an engine processes at once; at least max_model_len."""
    max_images: CountOrZero = 1
    """Most images of one prompt, an environment's included."""
    max_videos: CountOrZero = 0
    """Most videos of one prompt."""
    min_image_pixels: Pixels = None
    """Smaller images are scaled up to so many pixels. Default: the model's processor decides."""
    max_image_pixels: Pixels = None
    """Larger images are scaled down to so many pixels; 32 × 32 are a token. Default: the model's processor decides."""
    max_video_pixels: Pixels = None
    """Larger videos are scaled down to so many pixels over all frames, but no frame below the processor's smallest video;
    2 × 32 × 32 are a token. Default: the model's processor decides."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Sampling temperature; the learner divides its logits by the same number."""
    kv_cache_gib: Annotated[float | None, Gt(0), RESUMABLE] = None
    """Key-value cache of each engine, in GiB (CPU engines). Default: room for all completions of a step or an evaluation, at most
    1."""
    gpu_memory_utilization: Annotated[float, Gt(0), RESUMABLE] = 0.85
    """Share of GPU memory that an engine may take (GPU engines). If the learner is on the same GPU, the rest holds its weights and
    its optimizer's state: 0.6 with placement colocated."""
    weight_transfer: Annotated[Literal["auto", "shared_memory", "nccl", "ipc"], RESUMABLE] = "auto"
    """Transport of new weights to the engines: nccl between GPUs, ipc if engines and learner share their GPUs, shared_memory
    through host memory, which is slower on GPUs. auto is nccl if both sides have GPUs, else shared_memory."""
    max_running: Annotated[Count, RESUMABLE] = 256
    """Completions that an engine runs at once. The rest waits for the first engine with room."""
    in_flight: Literal["keep", "requeue"] = "keep"
    """Running completions at a weight sync (max_staleness > 0): keep continues them with the new weights (in-flight weight updates,
    PipelineRL), and each token carries its version; requeue starts them over."""
    max_turns: Count = 8
    """Environments: most turns of the policy in an episode."""
    max_turn_tokens: CountOrZero = 0
    """Environments: longest turn, in tokens; 0: max_tokens, which limits the whole episode, observations included."""
    episode_timeout: Seconds = 3600.0
    """Environments: seconds after which an episode gets no further turn."""
    environment_timeout: Seconds = 60.0
    """Environments: seconds that a call of reset or step may take."""
    request_timeout: Annotated[Seconds, RESUMABLE] = 3600.0
    """Seconds after which a completion is cut, as if it had reached max_tokens."""
    verify_weights: Annotated[bool, RESUMABLE] = False
    """Compares a sum over the bits of every weight that arrives in an engine with the learner's, at each sync. An engine with a
    difference is replaced. On CPUs a GB takes one or two seconds on each side."""
    engine_timeout: Annotated[Seconds, RESUMABLE] = 300.0
    """Seconds without a response, or for one step of a weight update, after which an engine counts as hanging and is replaced."""
    start_timeout: Annotated[Seconds, RESUMABLE] = 1800.0
    """Seconds that an engine may take to start, including the time until Ray finds room for it."""
    max_failures: Annotated[CountOrZero, RESUMABLE] = 3
    """Failures of an engine and its replacements in a row, without a completion in between, before the run stops."""
    max_logprob_gap: Annotated[float | None, RESUMABLE] = None
    """Largest allowed mean |log p(engine) - log p(learner)| on on-policy tokens; the run stops beyond it.
    Default: 1e-3 in float32, 0.1 in bfloat16."""

    @property
    def num_threads(self) -> int:
        """CPU threads of each engine, which Ray counts as its CPUs: 1 if nothing has derived them."""
        return 1 if self.threads_per_engine is None else self.threads_per_engine

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of each CPU engine's key-value cache: 1 GiB if nothing has derived them."""
        return round(2**30 * (1.0 if self.kv_cache_gib is None else self.kv_cache_gib))

    @property
    def workers_per_engine(self) -> int:
        """Workers of each engine (tensor parallel): one on each of its GPUs, or one on the CPU."""
        return max(1, self.gpus_per_engine)

    @property
    def shares_gpus(self) -> bool:
        """True if engines and learner take turns on the same GPUs: engines sleep while the learner trains."""
        return self.weight_transfer == "ipc"

    @property
    def gap_bound(self) -> float:
        """`max_logprob_gap`, or the dtype's default."""
        if self.max_logprob_gap is not None:
            return self.max_logprob_gap
        return {"float32": 1e-3, "bfloat16": 0.1}[self.dtype]
