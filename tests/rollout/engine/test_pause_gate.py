"""A gate that many pass at a time, and that is shut only when nobody is on the way through."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.engine.pause_gate import PauseGate


def test_who_shuts_waits_for_those_on_the_way_and_who_comes_then_waits_until_it_opens() -> None:
    async def main() -> None:
        gate, seen, leave = PauseGate(), list[str](), asyncio.Event()

        async def passes(name: str) -> None:
            async with gate.entering():
                seen.append(f"{name} in")
                await leave.wait()
            seen.append(f"{name} out")

        async def shuts() -> None:
            async with gate.paused():
                seen.append("shut")
                await asyncio.sleep(0)
                seen.append("open")

        early = [asyncio.ensure_future(passes(name)) for name in "ab"]
        await asyncio.sleep(0)
        shutting = asyncio.ensure_future(shuts())
        await asyncio.sleep(0)
        late = asyncio.ensure_future(passes("c"))
        await asyncio.sleep(0)
        leave.set()
        await asyncio.gather(*early, shutting, late)
        assert seen == ["a in", "b in", "a out", "b out", "shut", "open", "c in", "c out"]

    asyncio.run(main())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), cancelled=st.sets(st.integers(0, 29), max_size=6))
def test_nobody_is_on_the_way_while_the_gate_is_shut_whoever_gives_up(seed: int, cancelled: set[int]) -> None:
    async def main() -> None:
        rng, gate, inside = random.Random(seed), PauseGate(), set[int]()

        async def rest() -> None:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)

        async def passes(number: int) -> None:
            await rest()
            async with gate.entering():
                inside.add(number)
                try:
                    await rest()
                finally:
                    inside.remove(number)

        async def shuts() -> None:
            for _ in range(5):
                await rest()
                async with gate.paused():
                    assert not inside
                    await rest()
                    assert not inside

        tasks = [asyncio.ensure_future(passes(number)) for number in range(30)]
        shutting = asyncio.ensure_future(shuts())
        for number in cancelled:
            await rest()
            tasks[number].cancel()
        await asyncio.wait_for(asyncio.gather(shutting, *tasks, return_exceptions=True), 20)
        shutting.result()

    asyncio.run(main())
