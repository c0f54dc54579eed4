"""Which engine answers what, with engines made up: no Ray, no vLLM, and time in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.pool.dispatcher import Dispatcher, PrefixAffinity, prompt_size
from rollout.types import (
    CannotReplace,
    Completion,
    EngineFailed,
    GenerateCall,
    Group,
    History,
    Prompt,
    Request,
    Response,
    Sampling,
    Video,
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

    async def start() -> FakeEngine:
        if not spare:
            raise EngineFailed("no engine is left")
        return spare.pop(0)

    return Dispatcher(start, engines, **{"capacity": 8, "timeout": 0.2, "max_failures": 3, **options})


def test_siblings_go_to_one_engine_and_groups_to_the_engine_with_least_to_do() -> None:
    async def main() -> None:
        engines = [FakeEngine(0.01), FakeEngine(0.01)]
        queue = dispatcher(*engines)
        groups = await asyncio.gather(*(queue.generate(call(prompt(name), [1, 2, 3])) for name in "abcd"))
        assert [texts(group) for group in groups] == [["1", "2", "3"]] * 4
        assert [engine.asked for engine in engines] == [["a", "c"], ["b", "d"]]
        await queue.close()

    run(main())


def test_no_engine_has_more_completions_than_its_capacity_and_none_waits_while_there_is_a_queue() -> None:
    async def main() -> None:
        slow, fast = FakeEngine(0.05), FakeEngine(0.001)
        queue = dispatcher(slow, fast, capacity=4)
        await asyncio.gather(*(queue.generate(call(prompt(str(n)), [1, 2])) for n in range(20)))
        assert slow.most_running <= 4 and fast.most_running <= 4
        assert len(fast.asked) > 3 * len(slow.asked)
        await queue.close()

    run(main())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    speeds=st.lists(st.sampled_from([0.0, 0.001, 0.003]), min_size=1, max_size=4),
    cancelled=st.sets(st.integers(0, 39)),
    capacity=st.integers(1, 8),
)
def test_whatever_is_asked_and_taken_back_the_first_in_the_queue_waits_only_where_no_engine_has_room(
    sizes, speeds, cancelled, capacity
) -> None:
    async def main() -> None:
        queue = dispatcher(*map(FakeEngine, speeds), capacity=capacity)
        asked = [
            asyncio.ensure_future(queue.generate(call(prompt(str(n)), range(size)))) for n, size in enumerate(sizes)
        ]
        while not all(job.done() for job in asked):
            await asyncio.sleep(0)
            for n in sorted(cancelled & set(range(len(asked)))):
                asked[n].cancel()
            head = queue._queue[0] if queue._queue else None
            for slot in queue._slots:
                assert slot.num_running <= max(capacity, *sizes)
                assert head is None or head.future.done() or not slot.has_room(len(head.seeds), capacity)
        for n, job in enumerate(asked):
            assert job.cancelled() or texts(job.result()) == [str(seed) for seed in range(sizes[n])]
        await queue.close()

    run(main())


def test_earlier_batches_go_first_and_in_a_batch_the_longest_prompts() -> None:
    async def main() -> None:
        engine = FakeEngine(0.001)
        queue = dispatcher(engine, capacity=1)
        waiting = [("first", 1, 1), ("late", 2, 9), ("short", 1, 2), ("long", 1, 8)]
        await asyncio.gather(
            *(queue.generate(call(prompt(name, length), [1]), batch=batch) for name, batch, length in waiting)
        )
        assert engine.asked == ["first", "long", "short", "late"]
        await queue.close()

    run(main())


def turn_of(request: Request) -> Request:
    return replace(request, history=History(token_ids=np.array([5], np.int32)))


def test_the_turns_of_an_episode_go_to_the_engine_that_has_read_it_though_another_has_less_to_do() -> None:
    async def main() -> None:
        engines = [FakeEngine(0.001), FakeEngine(0.001)]
        queue = dispatcher(*engines)
        home = PrefixAffinity()
        await queue.generate(call(prompt("a"), [1]), affinity=home)
        assert home.engine is engines[0]
        long = asyncio.ensure_future(queue.generate(call(prompt("b"), [1, 2, 3])))
        await asyncio.sleep(0)
        await queue.generate(call(turn_of(prompt("a")), [2]), affinity=home)
        await long
        assert [engine.asked for engine in engines] == [["a", "b", "a"], []]
        await queue.close()

    run(main())


def test_an_episode_that_has_begun_goes_before_new_prompts_of_its_batch_and_behind_earlier_batches() -> None:
    async def main() -> None:
        engine = FakeEngine(0.001)
        queue = dispatcher(engine, capacity=1)
        waiting = [(prompt("first"), 2), (prompt("new", 99), 2), (turn_of(prompt("begun")), 2), (prompt("earlier"), 1)]
        await asyncio.gather(*(queue.generate(call(asked, [1]), batch=batch) for asked, batch in waiting))
        assert engine.asked == ["first", "earlier", "begun", "new"]
        await queue.close()

    run(main())


def test_an_episode_whose_engine_is_full_or_gone_goes_on_at_another() -> None:
    async def main() -> None:
        slow, fast = FakeEngine(0.05), FakeEngine(0.001)
        queue = dispatcher(slow, fast, capacity=1)
        home = PrefixAffinity(engine=slow)
        at_work = asyncio.ensure_future(queue.generate(call(prompt("a"), [1]), affinity=home))
        await asyncio.sleep(0)
        await queue.generate(call(prompt("b"), [1]), affinity=home)
        assert (slow.asked, fast.asked, home.engine) == (["a"], ["b"], fast)
        await at_work
        home.engine = FakeEngine()  # one that has been replaced
        await queue.generate(call(prompt("c"), [1]), affinity=home)
        assert home.engine in (slow, fast)
        await queue.close()

    run(main())


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

        async def start() -> FakeEngine:
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

        async def start() -> Any:
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


def test_an_engine_that_cannot_be_replaced_ends_all_with_why_and_how_it_failed() -> None:
    async def main() -> None:
        async def start() -> FakeEngine:
            raise CannotReplace("By NCCL an engine cannot be replaced alone")

        queue = Dispatcher(start, [FakeEngine(dies_after=1), FakeEngine(60.0)], capacity=8, timeout=9.0, max_failures=3)
        asked = [asyncio.ensure_future(queue.generate(call(prompt(name), [1, 2]))) for name in "ab"]
        for found in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(found, CannotReplace)
            assert str(found) == "By NCCL an engine cannot be replaced alone. The engine's error: killed by the test"
        with pytest.raises(CannotReplace):
            await queue.generate(call(prompt("c"), [1]))
        await queue.close()

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


def test_the_idle_share_of_two_engines_of_which_one_works_half_of_the_time_is_three_quarters() -> None:
    async def main() -> None:
        queue = dispatcher(FakeEngine(0.2), FakeEngine(0.2))
        queue.take_idle_share()
        await queue.generate(call(prompt("a"), [1]))
        await asyncio.sleep(0.2)
        assert queue.take_idle_share() == pytest.approx(0.75, abs=0.1)
        await queue.close()

    run(main())


def test_the_size_of_a_prompt_counts_characters_and_pixels() -> None:
    from PIL import Image

    content = [{"type": "image"}, {"type": "text", "text": "abcdef"}]
    seen = Prompt(id="1", messages=[{"role": "user", "content": content}], images=[Image.new("RGB", (64, 32))])
    assert prompt_size(seen) == 6 + 4 * 64 * 32 // 1024
    # Six frames of 64 × 32 pixels are three pairs of two tokens, of four characters each.
    video = Video(frames=np.zeros((6, 32, 64, 3), np.uint8), fps=2.0, frame_indices=range(6))
    assert prompt_size(Prompt(id="1", messages=[], videos=[video])) == 24
