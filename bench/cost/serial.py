"""The serial work of driver and learner for a batch of real sizes, without a model: engines answer at once.

The producer of batches, the dispatcher, Ray's transport, the reward's process, samples, metrics and microbatches are the real ones.
So pictures of a million pixels and responses of thousands of tokens take seconds here.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import ray

from bench.cost.axes import END, IMAGE_TOKEN_SIDE, endless_policy, prompts_of
from bench.cost.cases import Case
from bench.rehearsal import share_of_ascii
from policies.inputs import vision_tokens
from policies.loading import load_processor
from policies.small.qwen3_vl import TOKEN_IDS
from rl.config import LearnerConfig, TrainConfig
from rl.generation.batches import BatchProducer, ScoredBatch, Stages
from rl.learner import Learner
from rl.learner.microbatches import split_minibatches, split_ranks
from rl.learner.prefixes import common_beginnings
from rl.metrics import step_metrics
from rl.preflight import open_runner
from rl.samples import make_samples
from rollout.config import RolloutConfig
from rollout.data.mixture import open_stream
from rollout.pool.channel import CallClient, CallServer, NumberedCall, Reply
from rollout.pool.dispatcher import Dispatcher, Engine
from rollout.rendering import expanded_prompt, limit_pixels
from rollout.types import Completion, GenerateCall, Group, Prompt, Request, Response, Sampling

LARGEST_SIDE = 1024
LONGEST = 2048
BASE = Case(prompts=16, group_size=8, response_tokens=512, image_side=512)
CASES = (
    BASE,
    *(replace(BASE, prompts=count) for count in (4, 64)),
    *(replace(BASE, group_size=count) for count in (2, 32)),
    *(replace(BASE, response_tokens=count) for count in (64, LONGEST)),
    *(replace(BASE, image_side=side) for side in (64, LARGEST_SIDE)),
)
RANKS = 64
"""Ranks that samples are divided among."""
REPEATS = 3
"""Measured batches of each case, after one to warm up."""


def measure_serial(threads: int) -> list[dict[str, float]]:
    """Returns a row for each case: its sizes, the seconds `handle`, `handed`, `divide` and `prepare`, and `bytes`. Needs Ray.

    handle: the driver's CPU seconds until the batch is scored. handed: from there until the learner has the samples, and metrics.
    divide: all samples are divided among ranks. prepare: microbatches of one rank's samples, pictures encoded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model = endless_policy(Path(scratch), Case().vocabulary)
        longest = 64 + (LARGEST_SIDE // IMAGE_TOKEN_SIDE) ** 2 + LONGEST
        config = TrainConfig(
            model=str(model),
            reward_cache=0,
            learner=LearnerConfig(dtype="float32", threads=threads),
            rollout=RolloutConfig(dtype="float32", max_model_len=longest, max_image_pixels=LARGEST_SIDE**2),
        )
        learner = Learner(config, model)
        engine, receiver = InstantEngine(model, config.rollout), ray.remote(_Receiver).options(num_cpus=0).remote()
        pool = InstantPool([engine])
        try:
            with open_runner(share_of_ascii, config) as runner:
                stages = Stages(stream=None, pool=pool, runner=runner, processor=learner.processor)  # type: ignore[arg-type]
                return [measure_batch(case, config, stages, learner, receiver) for case in CASES]
        finally:
            pool.close()
            ray.kill(receiver)


def measure_batch(case: Case, config: TrainConfig, stages: Stages, learner: Learner, receiver: Any) -> dict[str, float]:
    """Returns the row of one case, medians of several batches."""
    options = replace(config, prompts_per_step=case.prompts, group_size=case.group_size)
    steps = range(1, REPEATS + 2)
    stream = open_stream(prompts_of(case, case.prompts * len(steps)), batch_size=case.prompts, seed=0)
    sampling = Sampling(max_tokens=case.response_tokens)
    producer = BatchProducer(options, sampling, replace(stages, stream=stream), seed=0, steps=steps)
    rows = []
    for step in steps:
        cpu = time.process_time()
        producer.start(step - 1)
        batch = producer.take(step)
        handled, begin = time.process_time(), time.perf_counter()
        samples = make_samples(batch.groups, batch.scores)
        step_metrics(batch, samples, 0, options.num_minibatches, 1.0)
        ray.get(receiver.receive.remote(ray.put(samples)))
        handed = time.perf_counter()
        shares = split_minibatches(samples, options.num_minibatches)
        for share in shares:
            split_ranks(share, RANKS, common_beginnings(share, vision_tokens(learner.model.config)))
        divided = time.perf_counter()
        for share in shares:
            learner.make_microbatches(share)
        prepare = time.perf_counter() - divided - (divided - handed)  # which divides them once more
        rows.append({"handle": handled - cpu, "handed": handed - begin, "divide": divided - handed, "prepare": prepare})
    medians = {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}
    return {**asdict(case), **medians, "bytes": float(pickled_bytes(batch))}


def pickled_bytes(batch: ScoredBatch) -> int:
    """Returns the bytes of a batch's samples, as Ray stores them."""
    return len(ray.cloudpickle.dumps(make_samples(batch.groups, batch.scores)))


class InstantPool:
    """The two methods of the pool that a producer of batches uses, with the real dispatcher.

    Args:
        engines: The engines.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="instant pool", daemon=True)
        self._thread.start()
        self._engines = engines
        self._dispatcher: Dispatcher = self.start(self._open()).result()

    async def _open(self) -> Dispatcher:
        return Dispatcher(_no_other, self._engines, capacity=RolloutConfig.max_running, timeout=600.0, max_failures=0)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Starts a coroutine in the engines' event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def answer(
        self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int, *, batch: int = 0
    ) -> Group:
        """Returns one group."""
        seeds_by_index = dict(enumerate(seeds))
        call = GenerateCall(
            request=Request(prompt=prompt), sampling=sampling, seeds=seeds_by_index, policy_version=policy_version
        )
        return await self._dispatcher.generate(call, batch=batch)

    def close(self) -> None:
        """Ends the dispatcher and its engines."""

        async def end() -> None:
            await self._dispatcher.close()
            for engine in self._engines:
                await engine.destroy()

        self.start(end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _no_other(lost: Engine) -> Engine:
    raise AssertionError("no engine may fail here")


class InstantEngine(CallClient):
    """The client of an actor that samples nothing and answers at once, with as many tokens as it may.

    Args:
        model: The policy's folder, for its processor.
        config: Pixel limits.
    """

    def __init__(self, model: Path, config: RolloutConfig) -> None:
        self.actor: Any = ray.remote(_InstantActor).options(num_cpus=0, max_concurrency=1000).remote(str(model), config)
        super().__init__(self.actor)

    async def ping(self) -> None:
        """Returns at once."""

    async def destroy(self) -> None:
        """Ends the actor."""
        ray.kill(self.actor)
        await self.close()


class _InstantActor:
    def __init__(self, model: str, config: RolloutConfig) -> None:
        self._processor = limit_pixels(load_processor(model), config)
        self._server = CallServer(self)

    async def submit(self, calls: Sequence[NumberedCall]) -> None:
        self._server.submit(calls)

    async def poll(self) -> list[tuple[int, Reply]]:
        return await self._server.poll()

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        prompt_token_ids = expanded_prompt(self._processor, call.request.prompt)
        num_tokens = call.sampling.max_tokens
        for index, seed in call.seeds.items():
            token_ids = np.random.default_rng(seed).integers(0, TOKEN_IDS[END] - 6, num_tokens, dtype=np.int32)
            completion = Completion(
                text="x" * num_tokens, token_ids=token_ids, logprobs=np.full(num_tokens, -5.0, np.float32)
            )
            yield Response(index=index, completion=completion, prompt_token_ids=prompt_token_ids)


class _Receiver:
    def receive(self, samples: Any) -> None:
        """Takes samples, as a learner's rank does."""
