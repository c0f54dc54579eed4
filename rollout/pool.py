"""The Ray shell around the engines: starts them, hands out prompts, carries weight updates to every node."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from rollout.config import Backend, RolloutConfig
from rollout.engine import RolloutEngine
from rollout.types import Group, Prompt, Sampling
from rollout.weight_transfer import WeightSlab, map_slab

MIRROR_PIECE = 256 << 20
"""Bytes of a slab that travel to another node at once: what Ray's object store must have room for."""
GPU_SHARE = 0.5
"""What engine and learner each claim of a GPU that they share."""


def request_seed(run_seed: int, step: int, prompt_id: str, sample: int) -> int:
    """The seed of one request: the same for the same question asked at the same place of the run, on any engine."""
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


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


class _EngineActor:
    """A `RolloutEngine` in a process of its own."""

    async def start(self, model: str, config: RolloutConfig, choices: dict[str, Any]) -> None:
        """Starts vLLM; its errors arrive as words."""
        try:
            self._engine = RolloutEngine(model, config, **choices)
        except Exception as error:
            # vLLM's own error classes do not survive the way to the driver; their words do.
            raise RuntimeError(f"vLLM did not start: {type(error).__name__}: {error}") from None

    def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()

    async def generate(self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], version: int) -> Group:
        return await self._engine.generate(prompt, sampling, seeds, version)

    def open_mirror(self, nbytes: int) -> str:
        """Makes room for a copy of another node's slab; returns its path for the engines of this node."""
        self._mirror = WeightSlab(nbytes)
        return self._mirror.path

    def write_mirror(self, piece: np.ndarray, offset: int) -> None:
        self._mirror.buffer.numpy()[offset : offset + len(piece)] = piece

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

    def close(self) -> None:
        self._engine.close()


class RolloutPool:
    """All engines as one.

    Args:
        model: A folder or hub name that every engine's node can read.
        config: The engines' choices.
        backend: How new weights arrive.
        banned_ids: Tokens that are never sampled.
        policy_version: The version of the weights in `model`.
        lora_rank: Of the adapters that will come in place of weights; 0 where weights will come.
        tell_experts: Whether completions are to carry the experts that a MoE chose; on GPUs alone.

    Raises:
        ValueError: If the Ray cluster has too few CPUs or GPUs for the engines.
        RuntimeError: If an engine does not start; the message is its own.
    """

    def __init__(
        self,
        model: str | Path,
        config: RolloutConfig,
        *,
        backend: Backend,
        banned_ids: Sequence[int],
        policy_version: int,
        lora_rank: int = 0,
        tell_experts: bool = False,
    ) -> None:
        self.config = config
        _require_resources(config)
        actor = ray.remote(_EngineActor).options(
            num_cpus=config.threads_per_engine,
            num_gpus=GPU_SHARE if backend == "ipc" else config.gpus_per_engine,
            scheduling_strategy="SPREAD",
            max_concurrency=10_000,
            runtime_env={"env_vars": engine_environment(config, model)},
        )
        self.actors: list[ActorHandle] = [actor.remote() for _ in range(config.num_engines)]
        choices = {
            "backend": backend,
            "banned_ids": list(banned_ids),
            "policy_version": policy_version,
            "lora_rank": lora_rank,
            "tell_experts": tell_experts,
        }
        try:
            get([actor.start.remote(str(model), config, choices) for actor in self.actors])
        except BaseException:
            self.close()
            raise

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[Group]:
        """One group per prompt, in order.

        Args:
            prompts: The questions.
            sampling: Temperature and length.
            seeds: One list per prompt, one seed for each completion.
            policy_version: The version that every engine must hold.

        Raises:
            RuntimeError: If an engine fails or holds another version; the message is its own.
        """
        return get(
            [
                self.actors[i % len(self.actors)].generate.remote(prompt, sampling, list(prompt_seeds), policy_version)
                for i, (prompt, prompt_seeds) in enumerate(zip(prompts, seeds, strict=True))
            ]
        )

    def client(self) -> RayEngineClient:
        """The engines' control plane, for the learner; can be sent to its process."""
        nodes = get([actor.node_id.remote() for actor in self.actors])
        return RayEngineClient(engines=list(zip(self.actors, nodes, strict=True)), config=self.config)

    def close(self) -> None:
        """Ends every engine and its processes."""
        closing = [actor.close.remote() for actor in self.actors]
        ray.wait(closing, num_returns=len(closing), timeout=20)
        for actor in self.actors:
            ray.kill(actor)


@dataclass(kw_only=True)
class RayEngineClient:
    """Drives weight updates on all engines; vLLM's `VLLMWeightSyncClient`, used in the learner's process.

    Engines on the learner's node map its slab. On every other node the first engine keeps a mirror, filled through Ray's
    object store once per sync, that all engines of that node map.

    Attributes:
        engines: Actor and Ray node id of each engine.
        config: The engines' choices.
        next_version: The version that the next update commits.
    """

    engines: list[tuple[ActorHandle, str]]
    config: RolloutConfig
    next_version: int = 0

    def __post_init__(self) -> None:
        self._slab: np.ndarray | None = None
        self._mirrors: list[ActorHandle] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Tells each engine where its weights will come from."""
        if "path" in init_info:
            paths = self._slab_paths(init_info["path"], init_info["nbytes"])
            calls = [
                a.init_weight_transfer_engine.remote(init_info | {"path": paths[node]}) for a, node in self.engines
            ]
        elif "rank_offset" in init_info:
            width = max(1, self.config.gpus_per_engine)
            calls = [
                a.init_weight_transfer_engine.remote(init_info | {"rank_offset": init_info["rank_offset"] + i * width})
                for i, (a, _) in enumerate(self.engines)
            ]
        else:
            calls = [a.init_weight_transfer_engine.remote(init_info) for a, _ in self.engines]
        get(calls)

    def _slab_paths(self, path: str, nbytes: int) -> dict[str, str]:
        """The slab's path on each node; opens a mirror where it is another node than this process's."""
        here = ray.get_runtime_context().get_node_id()
        first = {node: actor for actor, node in reversed(self.engines)}
        remote = {node: actor for node, actor in first.items() if node != here}
        self._mirrors = list(remote.values())
        if remote:
            self._slab = map_slab(path, nbytes).numpy()
        return {here: path} | {node: get(actor.open_mirror.remote(nbytes)) for node, actor in remote.items()}

    def start_weight_update(self) -> None:
        """Prepares every engine."""
        get([actor.start_weight_update.remote() for actor, _ in self.engines])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Brings the slab to other nodes, then has every engine load."""
        if self._slab is not None:
            for offset in range(0, len(self._slab), MIRROR_PIECE):
                piece = ray.put(self._slab[offset : offset + MIRROR_PIECE])
                get([actor.write_mirror.remote(piece, offset) for actor in self._mirrors])
        get([actor.update_weights.remote(update_info) for actor, _ in self.engines])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Commits the update on every engine as `next_version`."""
        version = self.next_version if weight_version is None else int(weight_version)
        get([actor.finish_weight_update.remote(version) for actor, _ in self.engines])

    def load_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        """Brings adapters to every engine, once to each node."""
        content = ray.put(dict(files))
        get([actor.load_adapter.remote(content, version) for actor, _ in self.engines])


def get(calls: Any) -> Any:
    """`ray.get` whose errors start with what went wrong in the other process, not with Ray's account of it."""
    try:
        return ray.get(calls)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):  # a user's mistake that shows only over there
            raise ValueError(str(error.cause)) from error
        raise RuntimeError(f"{type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"a worker process died: {error}\nIts last words are in Ray's session logs; the usual reason is memory "
            "(lower rollout.kv_cache_gib, rollout.max_model_len or learner.microbatch_tokens)"
        ) from error


def _require_resources(config: RolloutConfig) -> None:
    have = ray.cluster_resources()
    for kind, each in (("CPU", config.threads_per_engine), ("GPU", config.gpus_per_engine)):
        if config.num_engines * each > have.get(kind, 0):
            raise ValueError(
                f"rollout.num_engines = {config.num_engines} engines of {each} {kind}s need {config.num_engines * each}, "
                f"Ray has {have.get(kind, 0):g}: lower num_engines, or start Ray on more machines"
            )
