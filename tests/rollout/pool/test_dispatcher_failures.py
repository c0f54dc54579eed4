"""Engines that die, hang or raise behind the dispatcher: what is generated again, and what ends the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from rollout.pool.dispatcher import Dispatcher, Engine
from rollout.types import (
    Completion,
    EngineFailed,
    GenerateCall,
    Response,
)
from tests.fake_engines import FakeEngine, call, dispatcher, prompt, run, texts


def test_what_a_dead_engine_had_not_finished_is_asked_again_with_its_seeds_and_nothing_else() -> None:
    async def main() -> None:
        dying, spare = FakeEngine(0.001, dies_after=2), FakeEngine(0.001)
        queue = dispatcher(dying, spare=[spare])
        group = await queue.generate(call(prompt("a"), [10, 20, 30, 40]))
        assert texts(group) == ["10", "20", "30", "40"]
        assert dying.destroyed and spare.asked == ["a"] and spare.most_running == 2
        assert queue.num_failures == 1 and queue.engines == [spare]
        await queue.close()

    run(main())


def test_an_engine_without_a_sign_of_life_is_replaced_after_its_deadline() -> None:
    async def main() -> None:
        hanging, spare = FakeEngine(hangs=True), FakeEngine()
        queue = dispatcher(hanging, spare=[spare])
        started = asyncio.get_running_loop().time()
        assert texts(await queue.generate(call(prompt("a"), [1, 2]))) == ["1", "2"]
        assert 0.2 <= asyncio.get_running_loop().time() - started < 5
        assert hanging.destroyed
        await queue.close()

    run(main())


def test_completions_that_a_sync_has_aborted_begin_anew() -> None:
    async def main() -> None:
        engine = FakeEngine(0.001)
        engine.aborts_next = True
        queue = dispatcher(engine)
        assert texts(await queue.generate(call(prompt("a"), [1, 2]))) == ["1", "2"]
        assert engine.asked == ["a", "a"] and queue.num_failures == 0
        await queue.close()

    run(main())


def test_engines_that_fail_again_and_again_end_the_run_with_the_last_ones_words() -> None:
    async def main() -> None:
        broken = [FakeEngine(dies_after=0) for _ in range(9)]
        queue = dispatcher(broken[0], spare=broken[1:], max_failures=3)
        with pytest.raises(
            RuntimeError, match="4 engines failed in a row in one place without a completion; the last one: killed by"
        ):
            await queue.generate(call(prompt("a"), [1]))
        assert [engine.destroyed for engine in broken] == [True] * 4 + [False] * 5
        with pytest.raises(RuntimeError, match="4 engines failed in a row"):
            await queue.generate(call(prompt("b"), [1]))
        await queue.close()

    run(main())


@pytest.mark.parametrize("num_engines", [1, 2, 4])
def test_engines_that_die_at_once_lose_no_group_not_even_one_that_was_just_handed_on(num_engines: int) -> None:
    # What a dead engine gives back goes to the next one, which dies in the same round of the event loop.
    async def main() -> None:
        together = asyncio.Event()

        class Dies(FakeEngine):
            async def generate(self, call):
                self.asked.append(call.request.prompt.id)
                await together.wait()
                raise EngineFailed("the node is gone")
                yield

        spare = [FakeEngine() for _ in range(num_engines)]
        queue = dispatcher(*(Dies() for _ in range(num_engines)), spare=spare, capacity=2, max_failures=1)
        asked = [asyncio.ensure_future(queue.generate(call(prompt(str(n)), [1]))) for n in range(6 * num_engines)]
        await asyncio.sleep(0.01)
        together.set()
        assert [texts(group) for group in await asyncio.gather(*asked)] == [["1"]] * len(asked)
        assert queue.num_failures == num_engines and not spare
        assert all(slot.num_running == 0 for slot in queue._slots)
        await queue.close()

    run(main())


def test_a_group_that_comes_with_an_engine_it_has_no_time_for_is_not_lost() -> None:
    # One answer makes room for the next group, and in the same round the engine dies, before that group has begun.
    async def main() -> None:
        room = asyncio.Event()

        class Dies(FakeEngine):
            async def generate(self, call):
                await room.wait()
                if call.request.prompt.id == "answered":
                    yield Response(index=0, completion=Completion(text="1"), prompt_token_ids=np.array([7]))
                else:
                    raise EngineFailed("vLLM has died")

        queue = dispatcher(Dies(), spare=[FakeEngine()], capacity=2)
        asked = [asyncio.ensure_future(queue.generate(call(prompt(name), [1]))) for name in ("answered", "b", "c", "d")]
        await asyncio.sleep(0.01)
        room.set()
        assert [texts(group) for group in await asyncio.gather(*asked)] == [["1"]] * 4
        await queue.close()

    run(main())


def test_a_group_at_which_one_engine_after_the_other_dies_is_named_and_ends() -> None:
    async def main() -> None:
        class Chokes(FakeEngine):
            async def generate(self, call):
                await asyncio.sleep(0.001)
                if call.request.prompt.id == "poison":
                    raise EngineFailed("out of memory")
                async for response in super().generate(call):
                    yield response

        async def start(lost: Engine) -> FakeEngine:
            return Chokes()

        queue = Dispatcher(start, [Chokes()], capacity=1, timeout=9.0, max_failures=99)
        poison = asyncio.ensure_future(queue.generate(call(prompt("poison"), [1])))
        with pytest.raises(RuntimeError, match="11 engines have failed while they answered prompt 'poison'"):
            await poison
        assert texts(await queue.generate(call(prompt("well"), [1]))) == ["1"]
        await queue.close()

    run(main())


def test_an_engine_whose_replacement_fails_in_any_way_is_tried_again() -> None:
    async def main() -> None:
        attempts = [ValueError("no such folder"), AssertionError(), FakeEngine()]

        async def start(lost: Engine) -> Any:
            attempt = attempts.pop(0)
            if isinstance(attempt, Exception):
                raise attempt
            return attempt

        queue = Dispatcher(start, [FakeEngine(dies_after=0)], capacity=8, timeout=9.0, max_failures=3)
        assert texts(await queue.generate(call(prompt("a"), [1, 2]))) == ["1", "2"]
        assert queue.num_failures == 3
        await queue.close()

    run(main())


def test_closing_waits_until_an_engine_that_is_being_destroyed_is_gone() -> None:
    async def main() -> None:
        class Lingers(FakeEngine):
            async def destroy(self) -> None:
                await asyncio.sleep(0.05)
                self.destroyed = True

        engine = Lingers(dies_after=0)
        queue = dispatcher(engine, spare=[FakeEngine()])
        asked = asyncio.ensure_future(queue.generate(call(prompt("a"), [1])))
        await asyncio.sleep(0.01)
        await queue.close()
        assert engine.destroyed
        with pytest.raises(RuntimeError, match="being closed"):
            await asked

    run(main())


def test_an_error_that_is_not_the_engines_reaches_who_asked_and_no_one_else() -> None:
    class Refuses(FakeEngine):
        async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
            if call.request.prompt.id == "too long":
                raise ValueError("prompt too long has 9000 tokens")
            async for response in super().generate(call):
                yield response

    async def main() -> None:
        queue = dispatcher(Refuses())
        good = asyncio.ensure_future(queue.generate(call(prompt("a"), [1])))
        with pytest.raises(ValueError, match="9000 tokens"):
            await queue.generate(call(prompt("too long"), [1]))
        assert texts(await good) == ["1"] and queue.num_failures == 0
        await queue.close()

    run(main())
