"""Orders to an engine's actor and answers from it, with the actor in the same event loop: what goes in one call, and what fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
import ray

from rollout.pool.channel import CallClient, CallServer, NumberedCall
from rollout.ray_calls import readable_error
from rollout.types import Completion, EngineFailed, GenerateCall, Prompt, Request, Response, Sampling


class Echo:
    """Answers each seed with itself; a prompt called "broken" or "dead" raises, one called "slow" never ends."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        name = call.request.prompt.id
        for index, seed in call.seeds.items():
            completion = Completion(text=f"{name} {seed}", policy_version=call.policy_version)
            yield Response(index=index, completion=completion, prompt_token_ids=np.zeros(0, np.int32))
        if name == "broken":
            raise KeyError("a bug")
        if name == "dead":
            raise EngineFailed("vLLM has died")
        if name == "slow":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise


class Method:
    """As Ray has it: `remote` begins at once, and what it returns can be awaited."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.calls: list[Any] = []

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        self.calls.append(args)
        return asyncio.ensure_future(self._call(args))

    async def _call(self, args: Any) -> Any:
        found = self._function(*args)
        return await found if asyncio.iscoroutine(found) else found


class FakeActor:
    """An engine's end of the channel. `death` is raised by what polls, `refuses` by what submits calls."""

    def __init__(self, *, refuses: str = "") -> None:
        self.engine = Echo()
        self.server = CallServer(self.engine)
        self.death: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.refuses = refuses
        self.submit, self.poll, self.cancel = Method(self._submit), Method(self._poll), Method(self.server.cancel)

    def _submit(self, calls: Sequence[NumberedCall]) -> None:
        if any(call.request.prompt.id == self.refuses for _, call in calls):
            raise ValueError("cannot be unpickled")
        self.server.submit(calls)

    async def _poll(self) -> Any:
        fetching = asyncio.ensure_future(self.server.poll())
        await asyncio.wait([fetching, self.death], return_when=asyncio.FIRST_COMPLETED)
        return await (self.death if self.death.done() else fetching)

    def die(self) -> None:
        self.death.set_exception(ray.exceptions.ActorDiedError())


def run(main: Any) -> Any:
    async def whole() -> Any:
        return await asyncio.wait_for(main(), 20)

    return asyncio.run(whole())


def asked(channel: CallClient, name: str, *seeds: int) -> Coroutine[Any, Any, list[str]]:
    async def all_answers() -> list[str]:
        request = Request(prompt=Prompt(id=name, messages=[]))
        sampling = Sampling(max_tokens=1)
        answers = channel.generate(
            GenerateCall(request=request, sampling=sampling, seeds=dict(enumerate(seeds)), policy_version=3)
        )
        return [f"{response.index}: {response.completion.text}" async for response in answers]

    return all_answers()


def test_each_order_gets_its_own_answers_whatever_else_is_asked() -> None:
    async def main() -> None:
        channel = CallClient(FakeActor())
        found = await asyncio.gather(asked(channel, "a", 1, 2), asked(channel, "b", 1), asked(channel, "a", 3))
        assert found == [["0: a 1", "1: a 2"], ["0: b 1"], ["0: a 3"]]
        await channel.close()

    run(main)


def test_a_hundred_orders_go_in_one_call_and_their_answers_come_in_one() -> None:
    async def main() -> None:
        actor = FakeActor()
        channel = CallClient(actor)
        found = await asyncio.gather(*(asked(channel, str(i), 1, 2) for i in range(100)))
        assert sum(map(len, found)) == 200
        assert len(actor.submit.calls) == 1
        assert len(actor.poll.calls) == 2, "one that brought everything, and one that waits for more"
        await channel.close()

    run(main)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [("broken", RuntimeError, "KeyError: 'a bug'"), ("dead", EngineFailed, "vLLM has died")],
)
def test_an_error_reaches_who_asked_in_plain_words_and_nobody_else(name: str, kind: type, words: str) -> None:
    async def main() -> None:
        channel = CallClient(FakeActor())
        failed, well = await asyncio.gather(asked(channel, name, 1), asked(channel, "a", 1), return_exceptions=True)
        assert type(failed) is kind and str(failed) == words
        assert well == ["0: a 1"]
        await channel.close()

    run(main)


def test_an_actor_that_dies_fails_all_that_wait_and_all_that_come_later() -> None:
    async def main() -> None:
        actor = FakeActor()
        channel = CallClient(actor)
        waiting = [asyncio.ensure_future(asked(channel, "slow", i)) for i in range(3)]
        await asyncio.sleep(0.01)
        actor.die()
        for found in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(found, EngineFailed) and "a worker process died" in str(found)
        with pytest.raises(EngineFailed, match="a worker process died"):
            await asked(channel, "a", 1)
        await channel.close()

    run(main)


def test_orders_that_cannot_be_taken_fail_and_do_not_wait_forever() -> None:
    async def main() -> None:
        channel = CallClient(FakeActor(refuses="odd"))
        early = asyncio.ensure_future(asked(channel, "slow", 1))
        await asyncio.sleep(0.01)
        with pytest.raises(ValueError, match="cannot be unpickled"):
            await asked(channel, "odd", 1)
        assert not early.done()
        early.cancel()
        await asyncio.wait([early])
        await channel.close()

    run(main)


def test_an_order_that_nobody_waits_for_any_more_is_dropped() -> None:
    async def main() -> None:
        actor = FakeActor()
        channel = CallClient(actor)
        waiting = asyncio.ensure_future(asked(channel, "slow", 1))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        await asyncio.sleep(0.01)
        assert actor.engine.cancelled == ["slow"]
        assert await asked(channel, "a", 1) == ["0: a 1"]
        assert len(actor.cancel.calls) == 1, "an order that was answered is not dropped"
        await channel.close()
        assert len(asyncio.all_tasks()) <= 2  # this one and the one that waits for an answer on the actor's side

    run(main)


def test_an_order_that_is_given_up_at_once_is_not_even_sent() -> None:
    async def main() -> None:
        actor = FakeActor()
        channel = CallClient(actor)
        asking = [asyncio.ensure_future(asked(channel, name, 1)) for name in ("a", "slow")]
        asyncio.get_running_loop().call_soon(asking[1].cancel)  # both are waiting, nothing has been sent
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert found[0] == ["0: a 1"] and isinstance(found[1], asyncio.CancelledError)
        assert not actor.engine.cancelled and not actor.server._tasks
        await channel.close()

    run(main)


def test_errors_that_mean_something_to_the_loop_keep_their_kind_on_the_way_through_ray() -> None:
    for cause, kind in (
        (ValueError("too many images"), ValueError),
        (OSError("no space"), RuntimeError),
    ):
        error = ray.exceptions.RayTaskError("generate", "traceback", cause)
        found = readable_error(error)
        assert type(found) is kind and str(cause) in str(found)
