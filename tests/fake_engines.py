"""Engines made up, behind a real dispatcher: no Ray, no vLLM, and time in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import numpy as np

from rollout.pool.dispatcher import Dispatcher, Engine
from rollout.types import (
    Completion,
    EngineFailed,
    GenerateCall,
    Group,
    Prompt,
    Request,
    Response,
    Sampling,
)

SAMPLING = Sampling(max_tokens=4)


class FakeEngine:
    """Answers each seed with itself, after `seconds`; may die after some answers, hang, or have all aborted once."""

    def __init__(self, seconds: float = 0.0, *, dies_after: int | None = None, hangs: bool = False) -> None:
        self.seconds, self.dies_after, self.hangs = seconds, dies_after, hangs
        self.asked: list[str] = []
        self.running = self.most_running = 0
        self.aborts_next = self.destroyed = False

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        seeds = call.seeds
        self.asked.append(call.request.prompt.id)
        self.running += len(seeds)
        self.most_running = max(self.running, self.most_running)
        left = len(seeds)
        try:
            for index, seed in seeds.items():
                await asyncio.sleep(self.seconds)
                if self.hangs:
                    await asyncio.sleep(3600)
                if self.dies_after is not None:
                    if self.dies_after == 0:
                        raise EngineFailed("killed by the test")
                    self.dies_after -= 1
                if self.aborts_next:
                    self.aborts_next = False
                    return
                completion = Completion(text=str(seed), token_ids=np.array([seed], np.int32))
                left, self.running = left - 1, self.running - 1
                yield Response(index=index, completion=completion, prompt_token_ids=np.array([7], np.int32))
        finally:
            self.running -= left

    async def ping(self) -> None:
        if self.hangs:
            await asyncio.sleep(3600)

    async def destroy(self) -> None:
        self.destroyed = True


def prompt(name: str, length: int = 1) -> Request:
    return Request(prompt=Prompt(id=name, messages=[{"role": "user", "content": "x" * length}]))


def call(request: Request, seeds: Sequence[int]) -> GenerateCall:
    return GenerateCall(request=request, sampling=SAMPLING, seeds=dict(enumerate(seeds)), policy_version=0)


def texts(group: Group) -> list[str]:
    return [completion.text for completion in group.completions]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def dispatcher(*engines: FakeEngine, spare: list[FakeEngine] | None = None, **options: Any) -> Dispatcher:
    spare = [] if spare is None else spare

    async def start(lost: Engine) -> FakeEngine:
        if not spare:
            raise EngineFailed("no engine is left")
        return spare.pop(0)

    return Dispatcher(start, engines, **{"capacity": 8, "timeout": 0.2, "max_failures": 3, **options})
