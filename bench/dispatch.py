"""Throughput by the number of engines, and the number of engines that one dispatcher can keep busy.

    python -m bench.dispatch

First, real engines with one core each: tokens per second with one engine and with all, and the seconds of each completion. Second,
up to hundreds of simulated engines with the same latencies and the real dispatcher: completions per second relative to one engine,
and the driver's CPU time for a completion. Third, the driver's cost of a completion's transport through Ray, by actors that answer
immediately.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import tyro
from rich.console import Console
from rich.table import Table

from policies.loading import load_processor, vision_token_ids
from policies.small.qwen3_vl import save_small_policy
from rollout.cluster import local_ray
from rollout.config import RolloutConfig
from rollout.data.prompts import prompts_from
from rollout.engine.spec import EngineSpec
from rollout.pool.channel import CallClient, CallServer, NumberedCall, Reply
from rollout.pool.dispatcher import Dispatcher, Engine
from rollout.pool.engine_actor import EngineHandle
from rollout.pool.engine_pool import EnginePool
from rollout.pool.seeds import request_seed
from rollout.tasks.digit_sums import digit_sums, to_prompt
from rollout.types import Completion, GenerateCall, Group, Prompt, Request, Response, Sampling


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options."""

    engines: int = 2
    """Real engines, one core each."""
    simulated: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of simulated engines."""
    prompts: int = 48
    """Prompts of each measurement, for each engine."""
    group_size: int = 8
    """Completions of each prompt."""
    max_tokens: int = 32
    """Tokens of a completion. The policy is random and rarely ends by itself."""
    max_running: int = 128
    """Completions that an engine runs at once."""
    repeats: int = 3
    """Measurements of the real engines, one engine and all in turn."""
    output: Path = Path("bench/results/dispatch.json")
    """The file of the results."""


def main(options: Options) -> None:
    """Measures, prints tables, writes JSON."""
    console = Console()
    with local_ray():
        real, latencies = measure_real(options)
        console.print(as_table("real engines", real))
        through_ray = [measure_ray(options, count) for count in (1, 2)]
    simulated = [measure_simulated(options, count, latencies) for count in options.simulated]
    for row in simulated:
        row["of ideal"] = row["completions/s"] / (
            row["engines"] / simulated[0]["engines"] * simulated[0]["completions/s"]
        )
    median = statistics.median(latencies)
    console.print(as_table(f"simulated engines, {median:.2f} s for a completion (median, as recorded)", simulated))
    console.print(as_table("through Ray, answered immediately", through_ray))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"real": real, "simulated": simulated, "through_ray": through_ray, "latencies": latencies}
    options.output.write_text(json.dumps(found, indent=1))


def measure_real(options: Options) -> tuple[list[dict[str, float]], list[float]]:
    """Returns tokens per second of one engine and of all, and the seconds of each completion of one engine."""
    prompts = prompts_from(digit_sums("train", num_prompts=1000), to_prompt)
    config = RolloutConfig(
        num_engines=options.engines,
        dtype="float32",
        max_tokens=options.max_tokens,
        max_model_len=256,
        max_running=options.max_running,
    )
    counts, speeds, latencies = sorted({1, options.engines}), dict[int, list[float]](), list[float]()
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_small_policy(Path(scratch), kind="dense", seed=0)
        banned = vision_token_ids(load_processor(folder))
        pool = EnginePool(EngineSpec(model=folder, config=config, backend="shared_memory", banned_ids=tuple(banned)))
        try:
            for core, engine in enumerate(pool.engines):
                pin(engine, core % (os.cpu_count() or 1))
            for repeat in range(options.repeats + 1):
                for count in counts:
                    engines = [TimedEngine(engine) for engine in pool.engines[:count]]
                    asked = list(prompts[: options.prompts * count])
                    start = time.perf_counter()
                    groups = pool.run(answer(engines, asked, options, seed=repeat))
                    seconds = time.perf_counter() - start
                    if repeat:  # the first measurement warms the engines up
                        speeds.setdefault(count, []).append(num_tokens(groups) / seconds)
                        if count == 1:
                            latencies += engines[0].latencies
        finally:
            pool.close()
    rows = [{"engines": count, "tokens/s": statistics.median(speeds[count])} for count in counts]
    for row, count in zip(rows, counts, strict=True):
        row["× one"] = statistics.median(a / b for a, b in zip(speeds[count], speeds[1], strict=True))
    return rows, latencies


def pin(engine: EngineHandle, core: int) -> None:
    """Pins all threads of an engine's processes to one core."""
    assert engine.processes is not None
    for pid, _ in engine.processes.processes:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def measure_simulated(options: Options, count: int, latencies: Sequence[float]) -> dict[str, float]:
    """Returns completions per second of simulated engines, and the driver's cost."""
    engines = [SimulatedEngine(latencies, seed) for seed in range(count)]
    prompts = [
        Prompt(id=str(i), messages=[{"role": "user", "content": "x" * 200}]) for i in range(options.prompts * count)
    ]
    start, cpu = time.perf_counter(), time.process_time()
    groups = asyncio.run(answer(engines, prompts, options, seed=0))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    total = sum(len(group.completions) for group in groups)
    return {
        "engines": count,
        "completions/s": total / seconds,
        "µs/completion": 1e6 * cpu / total,
        "driver busy": cpu / seconds,
    }


def measure_ray(options: Options, count: int) -> dict[str, float]:
    """Returns completions per second through Ray actors that answer immediately, and the driver's cost."""
    engines = [ImmediateEngine(options.max_tokens) for _ in range(count)]
    prompts = list(prompts_from(digit_sums("train", num_prompts=1000), to_prompt)[: 4 * options.prompts])

    async def both() -> tuple[float, float]:
        await answer(engines, prompts[:8], options, seed=0)
        start, cpu = time.perf_counter(), time.process_time()
        await answer(engines, prompts, options, seed=1)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        for engine in engines:
            await engine.destroy()
        return seconds, cpu

    seconds, cpu = asyncio.run(both())
    total = len(prompts) * options.group_size
    return {
        "actors": count,
        "completions/s": total / seconds,
        "µs/completion": 1e6 * cpu / total,
        "driver busy": cpu / seconds,
    }


async def answer(engines: Sequence[Engine], prompts: Sequence[Prompt], options: Options, seed: int) -> list[Group]:
    """Returns a group for each prompt, from a dispatcher over these engines."""
    queue = Dispatcher(_no_other, engines, capacity=options.max_running, timeout=600.0, max_failures=0)
    try:
        return await asyncio.gather(
            *(
                queue.generate(
                    GenerateCall(
                        request=Request(prompt=prompt),
                        sampling=Sampling(max_tokens=options.max_tokens),
                        seeds={i: request_seed(seed, 0, prompt.id, i) for i in range(options.group_size)},
                        policy_version=0,
                    )
                )
                for prompt in prompts
            )
        )
    finally:
        await queue.close()


async def _no_other(lost: Engine) -> Engine:
    raise AssertionError("no engine may fail here")


def num_tokens(groups: Sequence[Group]) -> int:
    """Returns the number of tokens of all completions."""
    return sum(len(completion.token_ids) for group in groups for completion in group.completions)


@dataclass(slots=True, eq=False)
class TimedEngine:
    """An engine with timed completions."""

    engine: Engine
    latencies: list[float] = field(default_factory=list)

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        """Passes responses on and records their seconds."""
        start = time.perf_counter()
        async for response in self.engine.generate(call):
            self.latencies.append(time.perf_counter() - start)
            yield response

    async def ping(self) -> None:
        """Returns at once."""

    async def destroy(self) -> None:
        """Does nothing. The pool ends the engine."""


class SimulatedEngine:
    """A simulated engine with the latencies of a real one."""

    def __init__(self, latencies: Sequence[float], seed: int) -> None:
        self._latencies, self._rng = latencies, random.Random(seed)

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        """Yields empty completions, the fastest first."""
        now = time.perf_counter()
        for index, seconds in zip(
            call.seeds, sorted(self._rng.choices(self._latencies, k=len(call.seeds))), strict=True
        ):
            await asyncio.sleep(now + seconds - time.perf_counter())
            yield Response(index=index, completion=Completion(text=""), prompt_token_ids=np.zeros(0, np.int32))

    async def ping(self) -> None:
        """Returns at once."""

    async def destroy(self) -> None:
        """Does nothing."""


class _ImmediateActor:
    def __init__(self, num_tokens: int) -> None:
        self._completion = Completion(
            text="x" * num_tokens,
            token_ids=np.zeros(num_tokens, np.int32),
            logprobs=np.zeros(num_tokens, np.float32),
        )
        self._server = CallServer(self)

    async def submit(self, calls: Sequence[NumberedCall]) -> None:
        self._server.submit(calls)

    async def poll(self) -> list[tuple[int, Reply]]:
        return await self._server.poll()

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        for index in call.seeds:
            yield Response(index=index, completion=self._completion, prompt_token_ids=np.zeros(100, np.int32))


class ImmediateEngine(CallClient):
    """The client of an actor that computes nothing."""

    def __init__(self, num_tokens: int) -> None:
        self.actor: Any = ray.remote(_ImmediateActor).options(num_cpus=0, max_concurrency=10_000).remote(num_tokens)
        super().__init__(self.actor)

    async def ping(self) -> None:
        """Returns at once."""

    async def destroy(self) -> None:
        """Ends the actor."""
        ray.kill(self.actor)
        await self.close()


def as_table(title: str, rows: Sequence[Mapping[str, float]]) -> Table:
    """Returns a table with one row for each measurement."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(
            *(f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.3g}" for value in row.values())
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
