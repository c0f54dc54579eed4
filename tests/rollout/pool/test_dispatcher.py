"""The queue in front of all engines: which engine answers what, and in which order."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.pool.dispatcher import PrefixAffinity, prompt_size
from rollout.types import (
    History,
    Prompt,
    Request,
    Video,
)
from tests.fake_engines import FakeEngine, call, dispatcher, prompt, run, texts


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


def test_work_that_nobody_waits_for_any_more_ends_at_the_engine() -> None:
    async def main() -> None:
        slow = FakeEngine(60.0)
        queue = dispatcher(slow, capacity=2)
        abandoned = asyncio.ensure_future(queue.generate(call(prompt("a"), [1, 2])))
        waiting = asyncio.ensure_future(queue.generate(call(prompt("b"), [3])))
        await asyncio.sleep(0.01)
        assert slow.running == 2 and slow.asked == ["a"]
        abandoned.cancel()
        await asyncio.sleep(0.01)
        assert slow.running == 1 and slow.asked == ["a", "b"]
        slow.seconds = 0.0
        waiting.cancel()
        assert texts(await queue.generate(call(prompt("c"), [4]))) == ["4"]
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
