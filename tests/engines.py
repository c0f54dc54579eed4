"""A real vLLM engine for tests: owned by an event loop in a thread of its own, driven by plain calls."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from policies.export import exported_metadata, exported_parameters
from policies.loading import load_processor, vision_token_ids
from rollout.config import RolloutConfig
from rollout.engine.spec import EngineSpec
from rollout.engine.vllm_engine import VllmEngine
from rollout.pool.engine_actor import EngineHandle, engine_environment
from rollout.pool.engine_pool import EnginePool
from rollout.ray_calls import EngineAddress
from rollout.types import GenerateCall, Group, Prompt, Request, Sampling, sampled_mask
from rollout.weights.senders import SharedMemorySender
from rollout.weights.source import WeightSource
from rollout.weights.update import RayEngineClient, SyncReport


class EngineThread:
    """One `VllmEngine` without Ray. As an `EngineClient` it takes weight updates from a sender in the test's process."""

    def __init__(
        self,
        model: Path,
        config: RolloutConfig,
        *,
        policy_version: int = 0,
        lora_rank: int = 0,
        student: Path | None = None,
        return_routed_experts: bool = False,
    ) -> None:
        os.environ.update(engine_environment(config, model))
        self.next_version = policy_version
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        spec = EngineSpec(
            model=model,
            config=config,
            backend="shared_memory",
            banned_ids=tuple(vision_token_ids(load_processor(model))),
            policy_version=policy_version,
            lora_rank=lora_rank,
            student=student,
            return_routed_experts=return_routed_experts,
        )

        async def start() -> VllmEngine:
            return VllmEngine(spec)

        self.engine = self._run(start())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=300)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, num_completions: int = 4, seed: int = 0
    ) -> list[Group]:
        """Groups of the version that the engine holds; completion i of prompt p has the seed 1000 · p + i + seed."""
        return self.begin(prompts, sampling, num_completions=num_completions, seed=seed).result(timeout=300)

    def begin(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, num_completions: int = 4, seed: int = 0
    ) -> Future[list[Group]]:
        """The same, for a caller that has something else to do meanwhile."""
        version = self.engine.policy_version

        async def all_groups() -> list[Group]:
            return await asyncio.gather(
                *(
                    group_of(
                        self.engine, prompt, sampling, [1000 * p + i + seed for i in range(num_completions)], version
                    )
                    for p, prompt in enumerate(prompts)
                )
            )

        return self.start(all_groups())

    def start(self, coroutine: Any) -> Future[Any]:
        """A future of a coroutine in the engine's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._run(self.engine.init_weight_transfer_engine(init_info))

    def start_weight_update(self) -> None:
        self._run(self.engine.start_weight_update())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._run(self.engine.update_weights(update_info))

    def verify_weights(self, sums: Mapping[str, int]) -> None:
        self._run(self.engine.verify_weights(sums))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._run(self.engine.finish_weight_update(self.next_version))

    def load_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        self._run(self.engine.load_adapter(files, version))

    def close(self) -> None:
        self.engine.close()
        self._loop.call_soon_threadsafe(self._loop.stop)


def call_of(prompt: Prompt, sampling: Sampling, seeds: Sequence[int], version: int) -> GenerateCall:
    """A call for one completion per seed."""
    request = Request(prompt=prompt)
    return GenerateCall(request=request, sampling=sampling, seeds=dict(enumerate(seeds)), policy_version=version)


async def group_of(engine: Any, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], version: int) -> Group:
    """One group from one engine; a completion that a sync has aborted is missing."""
    call = call_of(prompt, sampling, seeds, version)
    responses = [response async for response in engine.generate(call)]
    responses.sort(key=lambda response: response.index)
    return Group(
        prompt=prompt,
        prompt_token_ids=responses[0].prompt_token_ids if responses else np.zeros(0, np.int32),
        completions=[response.completion for response in responses],
        prompt_routed_experts=responses[0].prompt_routed_experts if responses else None,
    )


def process_of(engine: EngineHandle, which: str) -> psutil.Process:
    """The actor's own process, or the one that vLLM has started in it."""
    assert engine.processes is not None
    processes = [psutil.Process(pid) for pid, _ in engine.processes.processes if psutil.pid_exists(pid)]
    if which == "actor":
        return processes[0]
    return next(process for process in processes if "EngineCore" in process.name() + " ".join(process.cmdline()))


class LocalLearner:
    """A learner in the test's own process, connected with a pool of engines."""

    def __init__(self, learner: Any, pool: EnginePool) -> None:
        self.learner, self.pool = learner, pool
        self.connect()

    def connect(self) -> None:
        """Opens the way for weights, again where engines have been started anew."""
        self.pool.connect(self._connect)

    def _connect(self, engines: Sequence[EngineAddress]) -> None:
        source = WeightSource(
            metadata=partial(exported_metadata, self.learner.model),
            tensors=partial(exported_parameters, self.learner.model),
            dtype=torch.float32,
        )
        self._client = RayEngineClient(config=self.pool.config, engines=engines)
        self._sender = SharedMemorySender(source, self._client)

    def sync(self, version: int) -> dict[str, float]:
        """Brings the learner's weights to all engines as `version`."""
        return self.pool.sync(version, self._send)

    def _send(self, version: int, engines: Sequence[EngineAddress]) -> SyncReport:
        return self._client.run_sync(version, engines, self._sender.send_weights)


def change_weights(learner: Any, seed: int) -> None:
    """Moves every parameter, the vision tower's included, by about a tenth of its size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter += 0.1 * parameter.std().nan_to_num(1.0) * torch.randn(parameter.shape, generator=generator)


def largest_gap(learner: Any, groups: Sequence[Group]) -> float:
    """max |log p(engine) − log p(learner)| over all response tokens of the groups, in nats."""
    from rewards.types import Score
    from rl.samples import make_samples

    scores = [[Score(reward=0.0) for _ in group.completions] for group in groups]
    samples = [sample for group in make_samples(groups, scores) for sample in group]
    batches = learner.make_microbatches(samples)
    logprobs = learner.old_logprobs(batches)
    gaps = [(its - batch.rollout_logprobs_BT)[batch.mask_BT] for batch, its in zip(batches, logprobs, strict=True)]
    return torch.cat(gaps).abs().max().item()


NEAR_TIE = 3e-6
"""Of two experts whose logits in float32 are no further apart, engine and learner may take different ones: rounding decides."""


def gaps_of(learner: Any, group: Group) -> list[np.ndarray]:
    """|log p(engine) − log p(learner)| of each completion's sampled tokens, under the learner's present weights.

    NaN from where on a router of the learner's was near a tie.
    """
    from rewards.types import Score
    from rl.samples import make_samples

    found = []
    for completion in group.completions:
        if not sampled_mask(completion).any():
            found.append(np.zeros(0))
            continue
        [[sample]] = make_samples([replace(group, completions=[completion])], [[Score(reward=0.0)]])
        [batch] = learner.make_microbatches([sample])
        with router_margins(learner.model) as margins:
            [logprobs_BT] = learner.old_logprobs([batch])
        gaps_BT = (logprobs_BT - batch.rollout_logprobs_BT).abs()
        if margins:
            closest_L = (
                torch.stack(margins).amin(0).cummin(0).values
            )  # over all layers, up to the token that predicts the next
            gaps_BT = torch.where(closest_L[: gaps_BT.shape[1]] > NEAR_TIE, gaps_BT, torch.nan)
        found.append(gaps_BT[batch.mask_BT].numpy())
    return found


@contextmanager
def router_margins(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects of each layer [N] by how much the last expert that each token is sent to was ahead of the next; nothing if dense."""
    found: list[torch.Tensor] = []

    def note(router: Any, _args: Any, output: tuple[torch.Tensor, ...]) -> None:
        logits_NE = output[0].detach().sort(-1, descending=True).values
        found.append(logits_NE[:, router.top_k - 1] - logits_NE[:, router.top_k])

    routers = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(note) for router in routers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
