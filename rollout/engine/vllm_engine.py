"""One rollout engine: a plain class that owns vLLM, with tokens as input and output."""

from __future__ import annotations

import asyncio
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import psutil

from rollout.engine.outputs import as_prompt_logprobs, as_response
from rollout.engine.pause_gate import PauseGate
from rollout.engine.spec import EngineSpec
from rollout.engine.vllm_arguments import vllm_arguments
from rollout.engine.vllm_processes import (
    forked_processes,
    imports_of_vllm,
    remove_unmapped,
    segments_of,
    wait_until_ended,
)
from rollout.rendering import engine_media, limit_pixels, opens_thought, render
from rollout.types import EngineFailed, GenerateCall, Request, Response, Sampling
from rollout.weight_sums import file_sums, require_same

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.output_processor import RequestOutputCollector

T = TypeVar("T")

ATTEMPTS = 3
"""Attempts at a request that vLLM ends with an error, which it does if its processes have lost track of a picture."""
BAN = -100.0
"""Logit bias of banned tokens, the strongest that vLLM accepts: their probability vanishes in float32."""
DEATH_NOTICED_AFTER = 1.0
"""Seconds in which a call notices at the latest that vLLM has died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnteredRequest:
    """A request that vLLM works at."""

    name: str
    """Its name."""
    answers: RequestOutputCollector
    """The queue of its outputs."""
    version: int
    """The version of the weights at its start."""


class VllmEngine:
    """A vLLM engine that generates groups of completions.

    Build it inside a running event loop: vLLM attaches itself to it.
    """

    def __init__(self, spec: EngineSpec) -> None:
        with imports_of_vllm():
            from transformers import AutoProcessor
            from vllm.v1.engine.async_llm import AsyncLLM

        self.config = config = spec.config
        self.policy_version = self._initial_version = spec.policy_version
        self._bias = dict.fromkeys(spec.banned_ids, BAN)
        is_teacher = spec.student is not None
        self._processor = limit_pixels(AutoProcessor.from_pretrained(spec.student or spec.model), config)
        self._adapter: LoRARequest | None = None
        self._asleep = False
        self._cut_requests: set[str] = set()
        self._gate = PauseGate()
        # vLLM would take the size of the cache from it, whatever its argument is.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        others = _children()
        with nullcontext() if config.gpus_per_engine else forked_processes():
            self._llm = AsyncLLM.from_engine_args(vllm_arguments(spec, self._processor))
        self._processes = _children() - others
        self._scores_as_sampled: asyncio.Future[Any] | None = None
        if is_teacher:
            args_of_worker = (list(spec.banned_ids), config.temperature)
            self._scores_as_sampled = asyncio.ensure_future(
                self._llm.collective_rpc("score_as_sampled", args=args_of_worker)
            )

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        """Samples one completion per seed.

        Yields:
            The completions as they finish, except those that a weight sync has aborted.

        Raises:
            RuntimeError: If the engine or a completion has an older version than the call accepts; or if vLLM fails at a request.
            EngineFailed: If vLLM has died.
        """
        sampling = call.sampling
        self._require_version(call.policy_version)
        if not sampling.max_tokens:
            assert self._scores_as_sampled is not None, "only a teacher's engine scores tokens"
            await self._scores_as_sampled
        running: list[asyncio.Task[Response | None]] = []
        try:
            with _engine_death_as_failure():
                inputs = self._render(call.request)
                entered = await self._enter(
                    inputs, [self._sampling_params(sampling, each) for each in call.seeds.values()]
                )
                running += [
                    asyncio.ensure_future(self._respond(index, inputs, sampling, seed, its))
                    for (index, seed), its in zip(call.seeds.items(), entered, strict=True)
                ]
                for done in asyncio.as_completed(running):
                    if (response := await done) is not None:
                        self._require_version(call.policy_version, response.completion.policy_version)
                        yield response
        finally:
            for task in running:
                task.cancel()

    async def until_death(self, call: Coroutine[Any, Any, T]) -> T:
        """Returns the result of a call of one of the methods below.

        Raises:
            EngineFailed: If vLLM has died, or dies in the call, which it would then never answer.
        """
        task = asyncio.ensure_future(call)
        try:
            with _engine_death_as_failure():
                while not (await asyncio.wait({task}, timeout=DEATH_NOTICED_AFTER))[0]:
                    if self._llm.errored:
                        raise EngineFailed("vLLM has died: one of its processes has ended")
                return task.result()
        finally:
            task.cancel()

    async def ping(self) -> None:
        """Returns when vLLM's process has answered."""
        await self._llm.is_paused()

    def _require_version(self, oldest: int, found: int | None = None) -> None:
        found = self.policy_version if found is None else found
        if found < oldest:
            raise RuntimeError(
                f"this engine has policy version {found}, the loop expects {oldest}: a weight sync "
                "was lost; resume from the newest checkpoint"
            )

    def _render(self, request: Request) -> Any:
        """Returns vLLM's inputs: token ids with one placeholder per image and video, which vLLM expands, and the media."""
        prompt, history = request.prompt, request.history
        inputs: dict[str, Any] = {"prompt_token_ids": [*render(self._processor, prompt), *history.token_ids.tolist()]}
        media = engine_media([*prompt.images, *history.images], prompt.videos)
        if media:
            names = {
                "image": [
                    *_names(request.name, "image", prompt.images),
                    *_names(history.name, "image", history.images),
                ],
                "video": _names(request.name, "video", prompt.videos),
            }
            inputs["multi_modal_data"] = media
            inputs["multi_modal_uuids"] = {kind: names[kind] for kind in media}
        return inputs

    def _sampling_params(self, sampling: Sampling, seed: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if not sampling.max_tokens:
            # vLLM samples at least one token, which is ignored.
            score_only = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
            return SamplingParams(**score_only, output_kind=RequestOutputKind.FINAL_ONLY)
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

    async def _respond(
        self, index: int, inputs: Any, sampling: Sampling, seed: int, entered: EnteredRequest
    ) -> Response | None:
        """Waits for one completion. Returns None if a weight sync has aborted it."""
        for attempt in range(ATTEMPTS):
            if attempt:
                [entered] = await self._enter(inputs, [self._sampling_params(sampling, seed)])
            output, is_cut = await self._output(entered)
            reason = output.outputs[0].finish_reason
            if reason == "abort" and not is_cut:
                return None
            if reason != "error" and not sampling.max_tokens:
                return as_prompt_logprobs(index, output, version=entered.version)
            if reason != "error":
                thinking = opens_thought(self._processor, inputs["prompt_token_ids"])
                return as_response(
                    index,
                    output,
                    asked_version=entered.version,
                    first_version=self._initial_version,
                    num_experts=self._llm.model_config.get_num_experts(),
                    thinking=thinking,
                )
        raise RuntimeError(f"vLLM ended a request {ATTEMPTS} times with an error of its own; its log has more")

    async def _enter(self, inputs: Any, params: Sequence[SamplingParams]) -> list[EnteredRequest]:
        """Gives requests with the same inputs to vLLM.

        They are separate requests of one completion each: one request of G sometimes loses some without an error (vLLM 0.32). Its
        renderer runs only for the first, which brings the media, and for the second, which refers to them as all others do.
        """
        entered: list[EnteredRequest] = []
        rendered: Any = None
        try:
            async with self._gate.entering():
                for number, each in enumerate(params):
                    if number < 2:
                        [rendered] = await self._llm.renderer.render_cmpl_async([inputs])
                    name = uuid.uuid4().hex
                    answers = await self._llm.add_request(name, rendered, each, lora_request=self._adapter)
                    entered.append(EnteredRequest(name=name, answers=answers, version=self.policy_version))
        except BaseException:
            for request in entered:
                await self._abort(request)
            raise
        return entered

    async def _output(self, entered: EnteredRequest) -> tuple[RequestOutput, bool]:
        """Returns vLLM's output of one request, and True if it was cut at its deadline."""
        answers, name = entered.answers, entered.name
        deadline = asyncio.get_running_loop().call_later(self.config.request_timeout, self._cut, name)
        try:
            while not (output := await answers.get()).finished:
                pass
        except asyncio.CancelledError:
            await self._abort(entered)
            raise
        finally:
            deadline.cancel()
            answers.close()
            is_cut = name in self._cut_requests
            self._cut_requests.discard(name)
        return output, is_cut

    async def _abort(self, entered: EnteredRequest) -> None:
        await self._llm.abort(entered.answers.request_id, internal=True)

    def _cut(self, name: str) -> None:
        """Ends a request at its deadline. The tokens sampled so far are its completion."""
        self._cut_requests.add(name)
        self._cutting = asyncio.ensure_future(self._llm.abort(name))

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connects the engine to the learner's sender."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def shutdown_weight_transfer_engine(self) -> None:
        """Disconnects the engine from the learner's sender, and frees what the connection holds."""
        await self._llm.shutdown_weight_transfer_engine()

    async def start_weight_update(self) -> None:
        """Pauses requests as `in_flight` says, drops caches of the old weights, and prepares for new ones."""
        async with self._gate.paused():
            await self._pause()
        if self.config.verify_weights:
            await self._llm.collective_rpc("sum_arriving_weights")
        await self._llm.start_weight_update()

    async def _pause(self) -> None:
        """Pauses all requests, while the gate is closed.

        vLLM keeps processed media in two processes, which must drop them together. Otherwise a sibling that comes in between would
        refer to media that one of the processes has dropped.
        """
        mode = "keep" if self.config.in_flight == "keep" else "abort"
        # Clears the caches of prefixes, of processed media and of encoded images, and recomputes running requests. This is vLLM's
        # `pause_generation` without its 20 ms of sleep, in which outputs of aborted requests arrive before it returns.
        await self._llm.renderer.clear_mm_cache_async()
        await self._llm.engine_core.pause_scheduler_async(mode=mode, clear_cache=True)

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives new weights."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def verify_weights(self, sums: Mapping[str, int]) -> None:
        """Compares the weights that have arrived in this update with the learner's, by their sums.

        Raises:
            EngineFailed: They differ.
        """
        for arrived in await self._llm.collective_rpc("arrived_sums"):
            require_same(sums, arrived)

    async def finish_weight_update(self, version: int) -> None:
        """Commits the new weights as `version` and resumes requests."""
        await self._llm.finish_weight_update(str(version))
        self.policy_version = version
        await self._resume()

    async def load_adapter(self, files: Mapping[str, bytes], version: int, sums: Mapping[str, int] = {}) -> None:
        """Replaces the adapters, as `version`.

        Args:
            files: The files that `policies.lora.adapter_files` returns.
            version: Version of the policy made of base and adapters.
            sums: The sums of the files that were sent; empty to compare none.

        Raises:
            EngineFailed: The files have other sums.
        """
        if sums:
            require_same(sums, file_sums(files))
        # The gate is closed: a request that enters afterwards gets the new adapters, not those that are about to be removed.
        async with self._gate.paused():
            await self._pause()
            await self._exchange_adapter(files, version)
            self.policy_version = version
            await self._resume()

    async def _exchange_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        from vllm.lora.request import LoRARequest

        with tempfile.TemporaryDirectory(prefix="adapter-") as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            # vLLM counts adapters from 1. Each gets a new number, so that no cache of an older one is used.
            adapter = LoRARequest(lora_name=str(version), lora_int_id=version + 1, lora_path=folder)
            if not await self._llm.add_lora(adapter):
                raise RuntimeError(f"vLLM did not load the adapters of policy version {version}")
        if self._adapter is not None and self._adapter.lora_int_id != adapter.lora_int_id:
            await self._llm.remove_lora(self._adapter.lora_int_id)
        self._adapter = adapter

    async def _resume(self) -> None:
        if not self._asleep:  # else vLLM resumes by itself when it is fully awake
            await self._llm.resume_generation()

    async def sleep(self) -> None:
        """Frees the GPU's memory until `wake`: drops the key-value cache, and moves the weights to host memory.

        vLLM's level 2 would drop the weights, which a sync is about to replace. But it would also drop the buffers that Qwen3-VL
        adds to the embeddings of every token. vLLM 0.32 keeps them in a plain list and expects zeros, so the engine would return
        garbage without an error. Level 2 would also not restore the weights that adapters need.
        """
        await self._llm.sleep(level=1, mode="abort")
        self._asleep = True

    async def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Takes GPU memory again: first for weights, so that new ones can come, then for the key-value cache. Then resumes."""
        self._asleep = not await self._llm.wake_up([part])

    def close(self) -> None:
        """Ends vLLM's processes and removes the shared memory that they leave."""
        segments = segments_of(self._processes)
        self._llm.shutdown()
        del self._llm  # its finaliser would fail at the interpreter's end, when half of Python is gone
        wait_until_ended(self._processes, seconds=10)
        remove_unmapped(segments)


def _children() -> set[psutil.Process]:
    """Returns this process's descendants, but Python's resource tracker, which lives as long as this process."""
    children = psutil.Process().children(recursive=True)
    return {child for child in children if "resource_tracker" not in " ".join(child.cmdline())}


def _names(name: str, kind: str, items: Sequence[Any]) -> list[str]:
    return [f"{name}-{kind}-{i}" for i in range(len(items))]


@contextmanager
def _engine_death_as_failure() -> Iterator[None]:
    """Raises EngineFailed if vLLM has died."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineFailed(f"vLLM has died: {error}") from None
