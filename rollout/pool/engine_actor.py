"""An engine in a Ray actor: its start, its calls, and the cleaning up after its death."""

from __future__ import annotations

import getpass
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.cluster import Gpu
from rollout.config import RolloutConfig
from rollout.engine.spec import EngineSpec
from rollout.engine.vllm_engine import VllmEngine
from rollout.engine.vllm_processes import ENGINE_PROCESS_VAR
from rollout.pool.channel import CallClient, CallServer, NumberedCall, Reply
from rollout.processes import NodeProcesses, kill_processes, processes_here
from rollout.ray_calls import EngineAddress, ray_answer
from rollout.types import GenerateCall, Response

ONEDNN_KERNELS = 512
"""Kernels that oneDNN keeps in a process. It compiles one for each number of tokens and each shape of a weight, of 70 to 280 kB.
By default it keeps 1024: an engine on CPUs grows by 10 MB in 100 steps for a long time. vLLM keeps 32 for each shape besides."""
LONGEST_SOCKET_FOLDER = 107 - len("/") - 36
"""Most characters of a folder for sockets with names of 36: Linux allows 107 in a socket's path."""


def engine_environment(config: RolloutConfig, model: str | Path) -> dict[str, str]:
    """Returns the environment variables of an engine's process, which vLLM's processes inherit."""
    environment = {
        "OMP_NUM_THREADS": str(config.num_threads),
        # Threads that spin while they wait would take the learner's cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        # joblib, which scikit-learn imports, would make a semaphore in /dev/shm that stays when Ray kills vLLM's process.
        "JOBLIB_MULTIPROCESSING": "0",
        # The remaining warnings of these libraries are not for the user of a recipe.
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        ENGINE_PROCESS_VAR: "1",
        "VLLM_PLUGINS": os.environ.get("VLLM_PLUGINS", "sapo_weight_transfer"),
    }
    if not config.gpus_per_engine:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(ONEDNN_KERNELS)
    if Path(model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def engine_options(config: RolloutConfig, model: str | Path, gpus: Sequence[Gpu] = ()) -> dict[str, Any]:
    """Returns Ray's options for an engine's actor.

    Args:
        config: The engine options.
        model: A folder or hub name.
        gpus: GPUs that the engine shares with the learner's ranks, all on one node; empty if it shares none.
    """
    environment = engine_environment(config, model)
    options: dict[str, Any] = {"num_cpus": config.num_threads, "max_concurrency": 10_000}
    if not gpus:
        options |= {"num_gpus": config.gpus_per_engine, "scheduling_strategy": "SPREAD"}
    else:
        # The ranks have claimed these GPUs for both. Ray cannot lend an actor a part of each of several GPUs.
        options |= {"num_gpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(gpus[0].node, soft=False)}
        # vLLM pickles the addresses of GPU memory for its own process, which it does only if this is set.
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return options | {"runtime_env": {"env_vars": environment}}


class _EngineActor:
    """A `VllmEngine` in a process of its own."""

    async def start(self, spec: EngineSpec, devices: Sequence[str]) -> NodeProcesses:
        """Starts vLLM, on `devices` if they are not empty: GPUs that Ray has not assigned to this process."""
        if devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        self._place_files()
        try:
            self._engine = VllmEngine(spec)
        except Exception as error:
            # vLLM's error classes cannot be unpickled in the driver, so only the text is sent.
            raise RuntimeError(f"vLLM did not start: {type(error).__name__}: {error}") from None
        self._server = CallServer(self._engine)
        return processes_here()

    def _place_files(self) -> None:
        """Puts sockets and temporary files of vLLM into the folder of Ray's session, which goes with it.

        Those in /tmp stay if vLLM is killed. The cache of torch's compiler, which is meant to stay, is where it would be.
        """
        context = ray.get_runtime_context()
        folder = Path(context.get_temp_dir()) / context.get_session_name()
        cache = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        if len(str(folder)) <= LONGEST_SOCKET_FOLDER:
            os.environ["VLLM_RPC_BASE_PATH"] = str(folder)

    async def submit(self, calls: Sequence[NumberedCall]) -> None:
        self._server.submit(calls)

    async def poll(self) -> list[tuple[int, Reply]]:
        return await self._server.poll()

    async def poll_storing(self) -> AsyncIterator[np.ndarray | list[tuple[int, Reply]]]:
        async for result in self._server.poll_storing():
            yield result

    async def cancel(self, number: int) -> None:
        self._server.cancel(number)

    async def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the engine by its name. Raises EngineFailed if vLLM has died or dies in the call."""
        return await self._engine.until_death(getattr(self._engine, method)(*args))

    def close(self) -> None:
        self._engine.close()


class EngineHandle:
    """The driver's handle of one engine; a `rollout.pool.dispatcher.Engine`.

    Args:
        spec: The engine's specification.
        gpus: GPUs that the engine shares with the learner; empty if it shares none.
    """

    def __init__(self, spec: EngineSpec, gpus: Sequence[Gpu] = ()) -> None:
        self.name, self.gpus = uuid.uuid4().hex, gpus
        options = engine_options(spec.config, spec.model, gpus)
        self.actor: ActorHandle = ray.remote(_EngineActor).options(**options).remote()
        self.starting: ray.ObjectRef = self.actor.start.remote(spec, [gpu.device for gpu in gpus])
        self.processes: NodeProcesses | None = None
        self._client = CallClient(self.actor, stores_experts=spec.return_routed_experts)

    @property
    def node(self) -> str:
        """The Ray node's id, after the start."""
        assert self.processes is not None, "the engine has not started"
        return self.processes.node

    @property
    def address(self) -> EngineAddress:
        """The address by which other processes call the engine, after the start."""
        return EngineAddress(name=self.name, node=self.node, actor=self.actor)

    def has_started(self, processes: NodeProcesses) -> None:
        """Stores the result of `starting`."""
        self.processes = processes

    async def generate(self, call: GenerateCall) -> AsyncIterator[Response]:
        """See `VllmEngine.generate`."""
        async for response in self._client.generate(call):
            yield response

    async def ping(self) -> None:
        """See `VllmEngine.ping`."""
        await ray_answer(self.address.call("ping"))

    async def sleep(self) -> None:
        """See `VllmEngine.sleep`."""
        await ray_answer(self.address.call("sleep"))

    async def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """See `VllmEngine.wake`."""
        await ray_answer(self.address.call("wake", part))

    async def destroy(self) -> None:
        """Kills the actor and vLLM's processes in any state, and removes their shared memory."""
        ray.kill(self.actor)
        await self._client.close()
        if self.processes is None:
            return
        with suppress(ray.exceptions.RayError):  # the whole node is gone
            await kill_processes(self.processes)

    def close(self) -> ray.ObjectRef:
        """Shuts vLLM down in good order. Returns the call."""
        return self.actor.close.remote()
