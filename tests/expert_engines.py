"""Engines made up that return experts, in Ray actors behind the real channel and a real dispatcher: no vLLM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Literal, TypeAlias

import ray

from rollout.pool.channel import CallClient, CallServer
from rollout.pool.dispatcher import Dispatcher
from rollout.pool.engine_actor import EngineHandle, _EngineActor
from rollout.types import GenerateCall, Group, Request, Response, Sampling

MakeGroups: TypeAlias = Callable[[], Sequence[Group]]


class ExpertActor(_EngineActor):
    """Answers with the completions of groups that it makes at its start.

    Like vLLM, it returns the prompt's experts with every completion.

    Args:
        make_groups: Makes them.
        dies: It dies when so many responses have reached the driver, or "storing": when some experts are stored, and their
            response has not left yet.
    """

    def __init__(self, make_groups: MakeGroups, dies: int | Literal["storing"] | None) -> None:
        self._groups = {group.prompt.id: group for group in make_groups()}
        self._server = CallServer(self)
        self._num_responses, self._dies = 0, dies

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        group = self._groups[call.request.prompt.id]
        for index in call.seeds:
            if self._num_responses == self._dies:
                await _die()
            self._num_responses += 1
            yield Response(
                index=index,
                completion=group.completions[index],
                prompt_token_ids=group.prompt_token_ids,
                prompt_routed_experts=group.prompt_routed_experts,
            )

    async def poll_storing(self) -> AsyncIterator[Any]:
        async for result in super().poll_storing():
            yield result
            if self._dies == "storing":
                await _die()

    def pid(self) -> int:
        return os.getpid()


async def _die() -> None:
    await asyncio.sleep(1.0)  # the driver gets all that was before
    os._exit(1)


class ExpertHandle(EngineHandle):
    """The driver's handle of such an engine."""

    def __init__(
        self, make_groups: MakeGroups, *, dies: int | Literal["storing"] | None = None, **options: Any
    ) -> None:
        actor = ray.remote(ExpertActor).options(num_cpus=0, max_concurrency=100, **options)
        self.actor = actor.remote(make_groups, dies)
        self.processes = None
        self._client = CallClient(self.actor, stores_experts=True)


class ExpertPool:
    """Such engines behind one queue, in an event loop that runs while it is called.

    Args:
        engines: The engines.
        spare: Replace engines that die.
    """

    def __init__(self, *engines: ExpertHandle, spare: Sequence[ExpertHandle] = ()) -> None:
        self._spare, self._loop = list(spare), asyncio.new_event_loop()

        async def replacement(lost: Any) -> ExpertHandle:
            return self._spare.pop(0)

        async def start() -> Dispatcher:
            return Dispatcher(replacement, engines, capacity=100, timeout=600.0, max_failures=1)

        self._dispatcher = self._run(start())

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, 60))

    def generate(self, groups: Sequence[Group]) -> list[Group]:
        """The groups as the driver gets them, with their experts at the engines."""
        sampling = Sampling(max_tokens=1)

        async def all_groups() -> list[Group]:
            calls = [
                GenerateCall(
                    request=Request(prompt=group.prompt),
                    sampling=sampling,
                    seeds={index: index for index in range(len(group.completions))},
                    policy_version=0,
                )
                for group in groups
            ]
            return await asyncio.gather(*map(self._dispatcher.generate, calls))

        return self._run(all_groups())

    def close(self) -> None:
        """Ends the engines."""

        async def end() -> None:
            engines = self._dispatcher.engines
            await self._dispatcher.close()
            for engine in (*engines, *self._spare):
                await engine.destroy()

        self._run(end())
        self._loop.close()
