"""An engine in a Ray actor: how it starts, how it is spoken to, and how nothing of it stays when it dies."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.cluster import Gpu
from rollout.config import Backend, RolloutConfig
from rollout.engine.vllm_engine import RolloutEngine
from rollout.engine.vllm_processes import (
    ENGINE_PROCESS_VAR,
    remove_unmapped,
    segments_of,
    semaphores_of,
    wait_until_ended,
)
from rollout.pool.channel import Answer, Channel, Order, Outbox
from rollout.ray_calls import EngineAddress, ray_answer
from rollout.types import Request, Response, Sampling


def engine_environment(config: RolloutConfig, model: str | Path) -> dict[str, str]:
    """Environment variables of an engine's process, which vLLM's own processes inherit."""
    environment = {
        "OMP_NUM_THREADS": str(config.threads_per_engine),
        # Threads that spin while they wait would take the learner's cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        # What is left of these libraries' chatter on the terminal is not for the user of a recipe.
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        ENGINE_PROCESS_VAR: "1",
        "VLLM_PLUGINS": os.environ.get("VLLM_PLUGINS", "sapo_weight_transfer"),
    }
    if not config.gpus_per_engine:
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    if Path(model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def engine_options(config: RolloutConfig, model: str | Path, gpus: Sequence[Gpu] = ()) -> dict[str, Any]:
    """What Ray is told of an engine.

    Args:
        config: The engine's choices.
        model: A folder or hub name.
        gpus: Those that it shares with the learner's ranks, all on one node; empty where it has its own.
    """
    environment = engine_environment(config, model)
    options: dict[str, Any] = {"num_cpus": config.threads_per_engine, "max_concurrency": 10_000}
    if not gpus:
        options |= {"num_gpus": config.gpus_per_engine, "scheduling_strategy": "SPREAD"}
    else:
        # The ranks have claimed them for both: of several GPUs Ray can lend a part to nobody.
        options |= {"num_gpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(gpus[0].node, soft=False)}
        # vLLM hands the addresses of GPU memory on to its own process by pickle, and wants to be told that it may.
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return options | {"runtime_env": {"env_vars": environment}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """What an engine has on its node, to be cleared away if it dies.

    Attributes:
        node: The Ray node's id.
        processes: Process id and start time of each process; the actor's own comes first.
        segments: Shared memory that vLLM's processes talk through.
    """

    node: str
    processes: tuple[tuple[int, float], ...]
    segments: tuple[Path, ...]


class _EngineActor:
    """A `RolloutEngine` in a process of its own."""

    async def start(
        self, model: str, config: RolloutConfig, choices: dict[str, Any], devices: Sequence[str]
    ) -> Belongings:
        """Starts vLLM, on GPUs that Ray has not given to this process if `devices` names any; its errors arrive as words."""
        if devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        try:
            self._engine = RolloutEngine(model, config, **choices)
        except Exception as error:
            # vLLM's own error classes do not survive the way to the driver; their words do.
            raise RuntimeError(f"vLLM did not start: {type(error).__name__}: {error}") from None
        self._outbox = Outbox(self._engine)
        own = psutil.Process()
        processes = [own, *own.children(recursive=True)]
        return Belongings(
            node=ray.get_runtime_context().get_node_id(),
            processes=tuple((process.pid, process.create_time()) for process in processes),
            segments=tuple(segments_of(processes)),
        )

    async def take(self, orders: Sequence[Order]) -> None:
        self._outbox.take(orders)

    async def fetch(self) -> list[tuple[int, Answer]]:
        return await self._outbox.fetch()

    async def drop(self, number: int) -> None:
        self._outbox.drop(number)

    async def ping(self) -> None:
        await self._engine.ping()

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        await self._engine.init_weight_transfer_engine(init_info)

    async def start_weight_update(self) -> None:
        await self._engine.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        await self._engine.update_weights(update_info)

    async def finish_weight_update(self, version: int) -> None:
        await self._engine.finish_weight_update(version)

    async def load_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        await self._engine.load_adapter(files, version)

    async def sleep(self) -> None:
        await self._engine.sleep()

    async def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        await self._engine.wake(part)

    def close(self) -> None:
        self._engine.close()


class RemoteEngine:
    """The driver's handle on one engine; a `rollout.pool.dispatcher.Engine`.

    Args:
        model: A folder or hub name that every engine's node can read.
        config: The engines' choices.
        backend: How new weights arrive.
        choices: The other arguments of `RolloutEngine`.
        gpus: Those that it shares with the learner; empty where it has its own, or none.
    """

    def __init__(
        self,
        model: str | Path,
        config: RolloutConfig,
        *,
        backend: Backend,
        choices: Mapping[str, Any],
        gpus: Sequence[Gpu] = (),
    ) -> None:
        self.name = uuid.uuid4().hex
        self.actor: ActorHandle = ray.remote(_EngineActor).options(**engine_options(config, model, gpus)).remote()
        self.starting: ray.ObjectRef = self.actor.start.remote(
            str(model), config, dict(choices, backend=backend), [gpu.device for gpu in gpus]
        )
        self.belongings: Belongings | None = None
        self._channel = Channel(self.actor)

    @property
    def node(self) -> str:
        """The Ray node's id, once it has started."""
        assert self.belongings is not None, "the engine has not started"
        return self.belongings.node

    @property
    def address(self) -> EngineAddress:
        """What others need to call it, once it has started."""
        return EngineAddress(name=self.name, node=self.node, actor=self.actor)

    def has_started(self, belongings: Belongings) -> None:
        """Notes what `starting` has brought."""
        self.belongings = belongings

    async def generate(
        self, request: Request, sampling: Sampling, seeds: Mapping[int, int], policy_version: int
    ) -> AsyncIterator[Response]:
        """See `RolloutEngine.generate`."""
        async for response in self._channel.generate(request, sampling, seeds, policy_version):
            yield response

    async def ping(self) -> None:
        """See `RolloutEngine.ping`."""
        await ray_answer(self.actor.ping.remote())

    async def sleep(self) -> None:
        """See `RolloutEngine.sleep`."""
        await ray_answer(self.actor.sleep.remote())

    async def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """See `RolloutEngine.wake`."""
        await ray_answer(self.actor.wake.remote(part))

    async def destroy(self) -> None:
        """Ends the actor, vLLM's processes and their shared memory, whatever state they are in."""
        ray.kill(self.actor)
        await self._channel.close()
        if self.belongings is None:
            return
        on_its_node = NodeAffinitySchedulingStrategy(self.node, soft=False)
        clear = ray.remote(_clear_away).options(num_cpus=0, scheduling_strategy=on_its_node, max_retries=0)
        try:
            await clear.remote(self.belongings)
        except ray.exceptions.RayError:  # the node is gone, and all that was on it
            return

    def close(self) -> ray.ObjectRef:
        """Asks the engine to end vLLM in good order."""
        return self.actor.close.remote()


def _clear_away(belongings: Belongings) -> None:
    processes = []
    for pid, start in belongings.processes:
        try:
            process = psutil.Process(pid)
            if process.create_time() == start:  # else the number is another's by now
                process.kill()
                processes.append(process)
        except psutil.NoSuchProcess:
            continue
    wait_until_ended(processes, seconds=10)
    semaphores = [path for pid, _ in belongings.processes for path in semaphores_of(pid)]
    remove_unmapped([*belongings.segments, *semaphores])
