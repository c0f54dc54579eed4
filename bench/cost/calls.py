"""The serial work of a process that drives many engines: calls, addresses of GPU memory, and completions.

Ray's actors answer at once, and several addresses lead to one actor. The caller's CPU seconds count: in a cluster each engine reads
its call on its own machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from scipy.optimize import nnls

from bench.dispatch import Options as DispatchOptions
from bench.dispatch import measure_ray, measure_simulated
from rollout.config import RolloutConfig
from rollout.ray_calls import EngineAddress
from rollout.weights.update import RayEngineClient

ENGINES = (16, 64, 256, 1024)
"""Numbers of engines that are called."""
RANKS = (64, 512)
"""Numbers of ranks whose addresses each call has."""
SIMULATED = (1, 4, 16, 64, 256)
"""Numbers of simulated engines behind the dispatcher."""
ADDRESSED_ENGINES = 32


class _AnsweringActor:
    async def call(self, method: str, *args: Any) -> None:
        """Returns at once."""


def measure_calls() -> dict[str, float]:
    """Returns the seconds of a call, of each pair of called engines, and of one rank's address; joins or starts Ray.

    A round of n calls takes n × call + n² × pair.
    """
    actors = [ray.remote(_AnsweringActor).options(num_cpus=0, max_concurrency=1000).remote() for _ in range(2)]
    rounds = {count: round_seconds(client_of(actors, count), {}) for count in ENGINES}
    client = client_of(actors, ADDRESSED_ENGINES)
    few, many = (round_seconds(client, {"ipc_handles": addresses(count)}) for count in RANKS)
    for actor in actors:
        ray.kill(actor)
    call, pair = fit_rounds(rounds)
    return {"call": call, "pair": pair, "address": max(0.0, many - few) / (RANKS[1] - RANKS[0]) / ADDRESSED_ENGINES}


def client_of(actors: Sequence[Any], count: int) -> RayEngineClient:
    """Returns a client of so many engines."""
    engines = [EngineAddress(name=str(i), node="", actor=actors[i % len(actors)]) for i in range(count)]
    return RayEngineClient(config=RolloutConfig(), engines=engines)


def round_seconds(client: RayEngineClient, update_info: dict[str, Any], repeats: int = 3) -> float:
    """Returns the CPU seconds of this process in which it calls every engine once; the least of several."""
    found = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        client.update_weights(update_info)
        found.append(time.process_time() - begin)
    return min(found[1:])


def fit_rounds(rounds: dict[int, float]) -> tuple[float, float]:
    """Returns the seconds of a call, and of each pair of engines, by least squares of relative errors."""
    seconds = np.array(list(rounds.values()))
    columns = np.array([[count, count**2] for count in rounds]) / seconds[:, None]
    (call, pair), _ = nnls(columns, np.ones_like(seconds))
    return float(call), float(pair)


def addresses(count: int) -> dict[str, tuple[Any, ...]]:
    """Returns GPU → the address of memory there, with the fields and sizes of torch's CUDA IPC."""
    return {
        f"GPU-{rank:08x}-0000-0000-0000-000000000000": (
            torch.Tensor,
            torch.Size([2**29]),
            (1,),
            0,
            torch.storage.TypedStorage,
            torch.bfloat16,
            0,
            rank.to_bytes(64),
            2**30,
            0,
            b"/torch_0000_0000000000_0",
            rank,
            rank.to_bytes(64),
            True,
            False,
        )
        for rank in range(count)
    }


def measure_completions() -> list[dict[str, float]]:
    """Returns the driver's CPU seconds of a completion, by the number of simulated engines, and through Ray as engine 0."""
    options = DispatchOptions()
    rows = [measure_simulated(options, count, [1.0]) for count in SIMULATED]
    through_ray = measure_ray(options, 2)
    return [
        {"engines": 0.0, "seconds": 1e-6 * through_ray["µs/completion"]},
        *({"engines": row["engines"], "seconds": 1e-6 * row["µs/completion"]} for row in rows),
    ]
