"""One rollout engine: a plain class that owns vLLM. Tokens go in, tokens come out."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from rollout.config import ENGINE_RANKS, RolloutConfig
from rollout.engine.outputs import as_reading, as_response
from rollout.engine.pause_gate import Gate
from rollout.engine.vllm_processes import remove_unmapped, segments_of, wait_until_ended
from rollout.rendering import engine_media, limit_pixels, pixel_options, render
from rollout.types import EngineFailed, Request, Response, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput

ATTEMPTS = 3
"""How often a request is made that vLLM ends with an error: it does so where its processes have lost track of a picture."""
BAN = -100.0
"""Logit bias of banned tokens, the strongest that vLLM takes: their probability vanishes in float32."""


class RolloutEngine:
    """Generates groups of completions with the weights of one policy version.

    Build it inside a running event loop: vLLM attaches itself to it.

    Args:
        model: A folder or hub name.
        config: The engine's choices.
        backend: How new weights arrive, a name of `rollout.weights.senders.Backend`.
        banned_ids: Tokens that must never be sampled: a vision placeholder in a response would break the learner's forward.
        policy_version: The version of the weights in `model`.
        lora_rank: Of the adapters that will come in place of weights; 0 where weights will come.
        tell_experts: Whether completions are to carry the experts that a MoE chose; on GPUs alone.
        teaches: For a teacher, which reads and draws nothing (`Sampling.max_tokens` 0): the policy that it reads after. Prompts are
            rendered with that one's processor, whatever the teacher's own chat template and pixel limits say.
    """

    def __init__(
        self,
        model: str | Path,
        config: RolloutConfig,
        *,
        backend: str,
        banned_ids: Sequence[int],
        policy_version: int,
        lora_rank: int = 0,
        tell_experts: bool = False,
        teaches: str | Path | None = None,
    ) -> None:
        from transformers import AutoProcessor
        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        self.config = config
        self.policy_version = self._initial_version = policy_version
        self._bias = dict.fromkeys(banned_ids, BAN)
        self._processor = limit_pixels(AutoProcessor.from_pretrained(teaches or model), config)
        args = AsyncEngineArgs(
            model=str(model),
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            # A seeded request whose prompt is prefilled in pieces kills vLLM's CPU worker: a prompt that the step has no more room
            # for waits for the next. A teacher has no seeds, and takes memory for the logits of all tokens that it reads at once.
            max_num_batched_tokens=config.max_batched_tokens
            if teaches
            else max(config.max_batched_tokens, config.max_model_len),
            enable_chunked_prefill=bool(teaches or config.gpus_per_engine),
            max_num_seqs=config.max_running,
            tensor_parallel_size=max(1, config.gpus_per_engine),
            # Left to itself vLLM would start actors of Ray for its workers, which nobody would end.
            distributed_executor_backend="mp" if config.gpus_per_engine > 1 else None,
            enable_sleep_mode=config.shares_gpus,
            gpu_memory_utilization=config.gpu_memory_utilization,
            # What the policy was sampled from: after temperature and bans.
            logprobs_mode="processed_logprobs",
            enforce_eager=not config.gpus_per_engine,
            limit_mm_per_prompt={"image": config.max_images, "video": config.max_videos},
            mm_processor_kwargs=pixel_options(self._processor),
            generation_config="vllm",  # the checkpoint's top-p and top-k would bias the ratios
            weight_transfer_config=WeightTransferConfig(backend=backend),
            **_lora_options(lora_rank),
            enable_return_routed_experts=tell_experts,
            worker_extension_cls="rollout.engine.teacher_worker.ReadsAsSampled" if teaches else "",
            disable_log_stats=True,
            use_tqdm_on_load=False,
            seed=0,
        )
        self._adapter: LoRARequest | None = None
        self._asleep = False
        self._cut_requests: set[str] = set()
        self._entrance = Gate()
        self._llm = AsyncLLM.from_engine_args(args)
        self._reads: asyncio.Future[Any] | None = None
        if teaches:
            as_sampled = (list(banned_ids), config.temperature)
            self._reads = asyncio.ensure_future(self._llm.collective_rpc("read_as_sampled", args=as_sampled))

    async def generate(
        self, request: Request, sampling: Sampling, seeds: Mapping[int, int], policy_version: int
    ) -> AsyncIterator[Response]:
        """Samples one completion per seed.

        Args:
            request: What to go on from; its images are processed once.
            sampling: Temperature, length and what else there is of it.
            seeds: The seed of each completion, by its index in the group.
            policy_version: The oldest version that the caller takes.

        Yields:
            The completions as they are done; those that a weight sync has aborted are left out.

        Raises:
            RuntimeError: If the engine holds, or a completion comes from, an older version; or if one is missing.
            EngineFailed: If vLLM has died.
        """
        self._require_version(policy_version)
        if not sampling.max_tokens:
            assert self._reads is not None, (
                "only a teacher's engine tells log-probabilities as they would be sampled from"
            )
            await self._reads
        inputs = self._render(request)
        running = [asyncio.ensure_future(self._respond(index, inputs, sampling, seed)) for index, seed in seeds.items()]
        try:
            with _death_told():
                for done in asyncio.as_completed(running):
                    if (response := await done) is not None:
                        self._require_version(policy_version, response.completion.policy_version)
                        yield response
        finally:
            for task in running:
                task.cancel()

    async def ping(self) -> None:
        """Asks vLLM's process for an answer.

        Raises:
            EngineFailed: If it has died.
        """
        with _death_told():
            await self._llm.is_paused()

    def _require_version(self, oldest: int, found: int | None = None) -> None:
        found = self.policy_version if found is None else found
        if found < oldest:
            raise RuntimeError(
                f"this engine has policy version {found}, the loop expects {oldest}: a weight sync "
                "was lost; resume from the newest checkpoint"
            )

    def _render(self, request: Request) -> Any:
        """The request as vLLM takes it: token ids with one placeholder per image and video, which vLLM expands."""
        prompt, said = request.prompt, request.said
        inputs: dict[str, Any] = {"prompt_token_ids": [*render(self._processor, prompt), *said.token_ids.tolist()]}
        media = engine_media([*prompt.images, *said.images], prompt.videos)
        if media:
            names = {
                "image": [*_names(request.name, "image", prompt.images), *_names(said.name, "image", said.images)],
                "video": _names(request.name, "video", prompt.videos),
            }
            inputs["multi_modal_data"] = media
            inputs["multi_modal_uuids"] = {kind: names[kind] for kind in media}
        return inputs

    def _sampling_params(self, sampling: Sampling, seed: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if not sampling.max_tokens:
            # vLLM draws one token at least, which nobody looks at.
            only_reads = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
            return SamplingParams(**only_reads, output_kind=RequestOutputKind.FINAL_ONLY)
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            presence_penalty=sampling.presence_penalty,
            seed=seed if sampling.temperature > 0 else None,
            logprobs=0,
            logit_bias=self._bias,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def _respond(self, index: int, inputs: Any, sampling: Sampling, seed: int) -> Response | None:
        """One completion; None if a weight sync has aborted it."""
        for _ in range(ATTEMPTS):
            version = self.policy_version
            output, is_cut = await self._ask(inputs, self._sampling_params(sampling, seed))
            reason = output.outputs[0].finish_reason
            if reason == "abort" and not is_cut:
                return None
            if reason != "error" and not sampling.max_tokens:
                return as_reading(index, output, version=version)
            if reason != "error":
                return as_response(index, output, asked_version=version, first_version=self._initial_version)
        raise RuntimeError(f"vLLM ended a request {ATTEMPTS} times with an error of its own; its log has more")

    async def _ask(self, inputs: Any, params: SamplingParams) -> tuple[RequestOutput, bool]:
        """vLLM's output of one request, and whether it was cut at its deadline."""
        name = uuid.uuid4().hex
        # G requests of one completion each: one request of G loses some, now and then, without an error (vLLM 0.32).
        async with self._entrance.passing():
            answers = await self._llm.add_request(name, inputs, params, lora_request=self._adapter)
        deadline = asyncio.get_running_loop().call_later(self.config.request_timeout, self._cut, name)
        try:
            while not (output := await answers.get()).finished:
                pass
        except asyncio.CancelledError:
            await self._llm.abort(answers.request_id, internal=True)
            raise
        finally:
            deadline.cancel()
            answers.close()
            is_cut = name in self._cut_requests
            self._cut_requests.discard(name)
        return output, is_cut

    def _cut(self, name: str) -> None:
        """Ends a request that has taken too long; what it has sampled so far is its completion."""
        self._cut_requests.add(name)
        self._cutting = asyncio.ensure_future(self._llm.abort(name))

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connects the engine with the learner's sender."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        with _death_told():
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_weight_update(self) -> None:
        """Stops what is running, in the way of `in_flight`, forgets what the old weights computed, and prepares for new ones."""
        with _death_told():
            async with self._entrance.shut():
                await self._pause()
            await self._llm.start_weight_update()

    async def _pause(self) -> None:
        """Stops what is running. While the entrance is shut: vLLM keeps processed media in two processes, which must forget them
        together, or siblings that come in between refer to what one of them has forgotten.
        """
        mode = "keep" if self.config.in_flight == "keep" else "abort"
        # Clears the caches of prefixes, of processed media and of encoded images, and has running requests computed anew.
        await self._llm.pause_generation(mode=mode, clear_cache=True)

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives new weights."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        with _death_told():
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_weight_update(self, version: int) -> None:
        """Commits the new weights as `version`, and goes on."""
        with _death_told():
            await self._llm.finish_weight_update(str(version))
            self.policy_version = version
            await self._resume()

    async def load_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        """Puts adapters in place of those before, as `version`.

        Args:
            files: As `policies.lora.adapter_files` makes them.
            version: Of the policy that base and adapters make.
        """
        # Who comes in now gets the new adapters, and not those that are about to go.
        with _death_told():
            async with self._entrance.shut():
                await self._pause()
                await self._exchange_adapter(files, version)
                self.policy_version = version
                await self._resume()

    async def _exchange_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        from vllm.lora.request import LoRARequest

        with tempfile.TemporaryDirectory(prefix="adapter-") as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            # vLLM counts adapters from 1; a number of its own each, so that nothing finds what an older one computed.
            adapter = LoRARequest(lora_name=str(version), lora_int_id=version + 1, lora_path=folder)
            if not await self._llm.add_lora(adapter):
                raise RuntimeError(f"vLLM did not load the adapters of policy version {version}")
        if self._adapter is not None and self._adapter.lora_int_id != adapter.lora_int_id:
            await self._llm.remove_lora(self._adapter.lora_int_id)
        self._adapter = adapter

    async def _resume(self) -> None:
        if not self._asleep:  # else vLLM goes on by itself when it is wide awake
            await self._llm.resume_generation()

    async def sleep(self) -> None:
        """Gives the GPU's memory away until `wake`: the key-value cache is dropped, weights wait in host memory.

        vLLM's level 2 would drop the weights, which a sync is about to replace. But with them it drops the buffers that
        Qwen3-VL adds to the embeddings of every token (vLLM 0.32 keeps them in a plain list, and expects zeros): garbage, and no
        error. Nor would it bring back the weights that adapters need.

        Raises:
            EngineFailed: If vLLM has died.
        """
        with _death_told():
            await self._llm.sleep(level=1, mode="abort")
        self._asleep = True

    async def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Takes memory again: first for weights, so that new ones can come, then for the key-value cache, and goes on.

        Raises:
            EngineFailed: If vLLM has died.
        """
        with _death_told():
            self._asleep = not await self._llm.wake_up([part])

    def close(self) -> None:
        """Ends vLLM's processes, and removes the shared memory that they leave."""
        children = psutil.Process().children(recursive=True)
        # Python's tracker of resources lives as long as this process: not to be waited for.
        workers = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
        segments = segments_of(workers)
        self._llm.shutdown()
        del self._llm  # its finaliser would complain at the interpreter's end, when half of Python is gone
        wait_until_ended(workers, seconds=10)
        remove_unmapped(segments)


def _names(name: str, kind: str, items: Sequence[Any]) -> list[str]:
    return [f"{name}-{kind}-{i}" for i in range(len(items))]


@contextmanager
def _death_told() -> Iterator[None]:
    """Makes of vLLM's death an EngineFailed."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineFailed(f"vLLM has died: {error}") from None


def _lora_options(rank: int) -> dict[str, Any]:
    """What vLLM must know of adapters before it starts."""
    if not rank:
        return {}
    # One at work, and room for its successor while both are there.
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 2,
        "max_lora_rank": min(known for known in ENGINE_RANKS if known >= rank),
    }
