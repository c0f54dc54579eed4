"""The Ray shell around the learner's ranks. Each rank is a process with its own threads and GPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from policies.export import exported_metadata, exported_parameters
from policies.lora import adapter_files
from rl.config import LearnerConfig, LearningOptions
from rl.learner import Learner
from rl.learner.calls import results_of
from rl.learner.ranks import COLLECTIVE_TIMEOUT, join_ranks
from rl.objectives import Objective
from rl.samples import Sample
from rl.types import LearnerFailed, StepReport
from rollout.cluster import Gpu, Node, cluster_nodes, describe_nodes, require_room
from rollout.config import Backend, RolloutConfig
from rollout.processes import NodeProcesses, kill_processes, processes_here
from rollout.ray_calls import EngineAddress
from rollout.types import EngineFailed
from rollout.weights.senders import AdapterSender, make_sender
from rollout.weights.source import Sender, WeightSource
from rollout.weights.update import RayEngineClient, SyncReport

CLAIM_TIMEOUT = 60.0
"""Seconds for Ray to find the learner's GPUs, which are either free or never will be."""

KILL_TIMEOUT = 30.0
"""Longest wait for the end of the ranks' processes, in seconds; those of a node that is lost do not answer."""


class _LearnerActor:
    """One rank of the learner in its own process. Rank 0 sends the weights to the engines, and with CUDA IPC every rank."""

    def processes(self) -> NodeProcesses:
        """Returns this rank's process."""
        return processes_here()

    def ping(self) -> None:
        """Does nothing."""

    def open_store(self) -> tuple[str, int]:
        """Opens the store through which the ranks find each other, on Ray's network alone. Returns its host and port."""
        host = ray.util.get_node_ip_address()
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self._store = dist.TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=COLLECTIVE_TIMEOUT,
            master_listen_fd=listener.detach(),
        )
        return host, port

    def gpu(self) -> Gpu:
        """Returns the GPU that Ray has assigned to this rank."""
        context = ray.get_runtime_context()
        (device,) = context.get_accelerator_ids()["GPU"]
        return Gpu(node=context.get_node_id(), device=device)

    def start(
        self,
        rank: int,
        store_address: tuple[str, int] | None,
        config: LearnerConfig,
        make_learner: Callable[[], Learner],
        resume_from: str | None,
    ) -> None:
        """Joins the other ranks, if any, and loads the policy."""
        self._rank = rank
        if store_address is not None:
            if rank > 0:
                self._store = dist.TCPStore(*store_address, is_master=False, timeout=COLLECTIVE_TIMEOUT)
            join_ranks(
                self._store,
                rank,
                config.num_ranks,
                on_gpus=config.gpus > 0,
                address=ray.util.get_node_ip_address(),
                timeout=COLLECTIVE_TIMEOUT,
            )
        self._learner = make_learner()
        if resume_from is not None:
            self._learner.load(Path(resume_from))
        self._empty_cuda_cache()

    def _empty_cuda_cache(self) -> None:
        """Frees the memory that torch caches, if an engine on the same GPU needs it."""
        if self._learner.options.rollout.shares_gpus:
            torch.cuda.empty_cache()

    def connect(self, backend: Backend, engines: Sequence[EngineAddress]) -> None:
        """Opens the transfer of weights or adapters. All ranks gather them. Rank 0 sends them, or with CUDA IPC every rank."""
        options = self._learner.options
        model, lora, rollout = self._learner.model, options.lora, options.rollout
        dtype = getattr(torch, rollout.dtype)
        weights = partial(exported_parameters, model, dtype)
        files = partial(adapter_files, model, rank=lora.rank, alpha=lora.alpha, parts=lora.parts, dtype=dtype)
        self._gather: Callable[[], Iterable[Any]] = files if lora.sync == "adapter" else weights
        self._sends = self._rank == 0 or (rollout.shares_gpus and lora.sync == "merged")
        if not self._sends:
            return
        self._client = RayEngineClient(config=rollout, engines=engines)
        if lora.sync == "adapter":
            self._sender: Sender = AdapterSender(files, self._client)
        else:
            source = WeightSource(metadata=partial(exported_metadata, model), tensors=weights, dtype=dtype)
            self._sender = make_sender(backend, source, self._client, rank=self._rank)
        if self._client.failures:
            raise EngineFailed(next(iter(self._client.failures.values())))

    def step(self, groups: Sequence[Sequence[Sample]]) -> StepReport:
        report = self._learner.step(groups)
        self._empty_cuda_cache()
        return report

    def total_logprob(self, samples: Sequence[Sample]) -> tuple[float, int]:
        return self._learner.total_logprob(samples)

    @torch.no_grad()
    def sync(self, policy_version: int, engines: Sequence[EngineAddress]) -> SyncReport | None:
        """Sends the weights, or takes part in gathering them. Rank 0 returns a report.

        Rank 0 gathers to the end whatever happens to engines: the other ranks wait for it.
        """
        report = None
        if self._sends:
            report = self._client.run_sync(policy_version, engines, self._sender.send_weights)
        else:
            for _ in self._gather():  # rank 0 needs this rank's part
                pass
        self._empty_cuda_cache()
        return report

    def save(self, folder: str, background: bool) -> None:
        self._learner.save(Path(folder), background=background)
        self._empty_cuda_cache()


class LearnerGroup:
    """All ranks of the learner. They start while the caller goes on; `connect` waits for them.

    Args:
        config: The options.
        model_path: The folder or hub name of the policy.
        resume_from: A checkpoint with the optimizer state to restore; None starts without.
        backend: How weights are sent to the engines.
        objective: The loss.
    """

    def __init__(
        self,
        config: LearningOptions,
        model_path: str | Path,
        resume_from: str | Path | None,
        backend: Backend,
        objective: Objective,
    ) -> None:
        self._config, self._backend, self._objective = config, backend, objective
        self._shares_gpus = config.rollout.shares_gpus
        self.num_ranks = config.learner.num_ranks
        self._gpus: list[Gpu] = []
        self._actors: list[ActorHandle] = []
        self._calling = Lock()
        self._pings: dict[ray.ObjectRef, int] = {}
        self._placement: PlacementGroup | None = None
        self._create()
        self._start(model_path, resume_from)

    def restart(self, model_path: str | Path, resume_from: str | Path | None) -> None:
        """Ends all ranks, and starts new ones from a checkpoint; see the class. Returns when they have started.

        Raises:
            LearnerFailed: One has died, or Ray lacks room for them, or the GPUs that engines share with them.
            RuntimeError: One has not started.
        """
        try:
            self._require_room(cluster_nodes())
            self._kill_processes()
            self.close()
            self._create()
        except ValueError as error:  # nodes are lost
            raise LearnerFailed(f"the learner cannot start again: {error}") from error
        if self._gpus:  # rank and engine stay on the same GPU
            gpus = _gpus_of(self._actors)
            if set(gpus) != set(self._gpus):
                raise LearnerFailed(
                    "Ray has assigned other GPUs to the learner than those of the engines that share them"
                )
            self._actors = [self._actors[gpus.index(gpu)] for gpu in self._gpus]
        self._start(model_path, resume_from)
        self.wait()

    def _create(self) -> None:
        """Starts the ranks' processes."""
        learner, rollout = self._config.learner, self._config.rollout
        environment = {
            "OMP_NUM_THREADS": str(learner.threads or 1),
            # Threads spin for some 50 µs, from one operation to the next. Those that sleep at once wake up late; those that spin
            # for longer take the engines' cores.
            "GOMP_SPINCOUNT": "20000",
            "KMP_BLOCKTIME": "1",
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        }
        nodes = cluster_nodes()
        self._require_room(nodes)
        places: list[dict[str, Any]] = [{}] * learner.num_ranks
        if learner.gpus:
            width = bundle_width(learner, rollout, max(node.gpus for node in nodes))
            self._placement = claim_gpus(learner.gpus, width)
            places = places_of_ranks(self._placement, width)
        # A rank claims no CPU, since it works while the engines wait.
        options = {"num_cpus": 0, "runtime_env": {"env_vars": environment}}
        self._actors = [ray.remote(_LearnerActor).options(**options, **place).remote() for place in places]
        self._processes = [actor.processes.remote() for actor in self._actors]

    def _require_room(self, nodes: Sequence[Node]) -> None:
        rollout = self._config.rollout
        require_room(nodes, rollout, learner_gpus=0 if rollout.shares_gpus else self._config.learner.gpus)

    def _kill_processes(self) -> None:
        """Kills the ranks' processes. `ray.kill` would leave one that is stopped."""
        answered, _ = ray.wait(self._processes, num_returns=self.num_ranks, timeout=0)
        killing = []
        for call in answered:
            with suppress(ray.exceptions.RayError):  # it has died before its answer
                killing.append(kill_processes(ray.get(call)))
        if killing:
            ray.wait(killing, num_returns=len(killing), timeout=KILL_TIMEOUT)

    def _start(self, model_path: str | Path, resume_from: str | Path | None) -> None:
        """Makes the ranks load the policy."""
        learner = self._config.learner
        store_address = self._actors[0].open_store.remote() if shares_policy(learner) else None
        make_learner = partial(Learner, self._config, str(model_path), self._objective)
        resume = None if resume_from is None else str(resume_from)
        self._started = [
            actor.start.remote(rank, store_address, learner, make_learner, resume)
            for rank, actor in enumerate(self._actors)
        ]

    def shared_gpus(self) -> list[Gpu]:
        """Returns the GPU of each rank, if engines share them; else an empty list.

        Waits until every rank has taken its memory: vLLM measures the free memory when it starts.
        """
        if not self._shares_gpus:
            return []
        self.wait()
        self._gpus = _gpus_of(self._actors)
        return self._gpus

    def wait(self) -> None:
        """Waits until every rank has started.

        Raises:
            RuntimeError: If one has not. The message is the rank's.
        """
        results_of(self._started)

    def check(self) -> None:
        """Looks for ranks that have died, without waiting for those that are at work.

        Raises:
            LearnerFailed: One has.
        """
        with self._calling:
            missing = set(range(self.num_ranks)) - set(self._pings.values())
            self._pings |= {self._actors[rank].ping.remote(): rank for rank in sorted(missing)}
            answered, _ = ray.wait(list(self._pings), num_returns=self.num_ranks, timeout=0)
            for ping in answered:
                results_of([ping], ranks=[self._pings.pop(ping)])

    def connect(self, engines: Sequence[EngineAddress]) -> None:
        """Opens the weight transfer from the learner to the engines.

        Raises:
            RuntimeError: If the learner has not started. The message is the rank's.
        """
        self.wait()
        self._on_all_ranks("connect", self._backend, engines)

    def step(self, groups: Sequence[Sequence[Sample]]) -> StepReport:
        """Trains on one step's samples; see `Learner.step`."""
        # One pickle for all ranks: the shared images of siblings are sent once.
        return self._on_all_ranks("step", ray.put(groups))

    def total_logprob(self, samples: Sequence[Sample]) -> tuple[float, int]:
        """Returns the total log-probability of the response tokens; see `Learner.total_logprob`."""
        return self._on_all_ranks("total_logprob", ray.put(samples))

    def sync(self, policy_version: int, engines: Sequence[EngineAddress]) -> SyncReport:
        """Sends the weights to these engines and commits them there as `policy_version`."""
        return self._on_all_ranks("sync", policy_version, engines)

    def save(self, folder: Path, *, background: bool = False) -> None:
        """Writes every rank's part of a checkpoint into `folder`, on storage of all ranks' nodes; see `Learner.save`."""
        self._on_all_ranks("save", str(folder), background)

    def close(self) -> None:
        """Ends the learner's processes, in any state."""
        for actor in self._actors:
            ray.kill(actor)
        self._pings.clear()
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    def _on_all_ranks(self, method: str, *args: Any) -> Any:
        """Calls a method on all ranks in parallel and returns rank 0's result.

        Raises:
            LearnerFailed: A rank has died, has run out of memory, or hangs.
            RuntimeError: A rank has failed otherwise. The message is the rank's.
        """
        with self._calling:  # calls of two threads must reach all ranks in the same order
            calls = [getattr(actor, method).remote(*args) for actor in self._actors]
        return results_of(calls, timeout=self._config.learner.step_timeout)[0]


def bundle_width(learner: LearnerConfig, rollout: RolloutConfig, node_gpus: int) -> int:
    """Returns the GPUs of a bundle, which is on one node: those of a replica of the policy, or of an engine that shares them.

    Args:
        learner: The learner's options, on GPUs.
        rollout: The engines' options.
        node_gpus: GPUs of the largest node.
    """
    width = rollout.gpus_per_engine if rollout.shares_gpus else 1
    shards = learner.shards
    return shards if shards < learner.gpus and shards <= node_gpus and shards % width == 0 else width


def claim_gpus(num_gpus: int, width: int) -> PlacementGroup:
    """Claims GPUs for the ranks, in bundles of `width` on one node each.

    Raises:
        ValueError: If Ray has no such GPUs free.
    """
    # Ranks communicate all the time, so they are on one node if it has the GPUs.
    claim = placement_group([{"GPU": width}] * (num_gpus // width), strategy="PACK")
    if not claim.wait(CLAIM_TIMEOUT):
        remove_placement_group(claim)
        raise ValueError(
            f"learner.gpus = {num_gpus}, {width} together on one node: Ray has found none free for {CLAIM_TIMEOUT:g} s "
            f"({describe_nodes(cluster_nodes())}): lower learner.gpus, or end what else uses them"
        )
    return claim


def places_of_ranks(claim: PlacementGroup, width: int) -> list[dict[str, Any]]:
    """Returns Ray's options for the GPU of each rank."""
    bundles = by_node(placement_group_table(claim)["bundles_to_node_id"])
    strategies = [PlacementGroupSchedulingStrategy(claim, placement_group_bundle_index=bundle) for bundle in bundles]
    return [{"num_gpus": 1, "scheduling_strategy": strategy} for strategy in strategies for _ in range(width)]


def by_node(nodes: Mapping[int, str]) -> list[int]:
    """Returns the numbers of bundles, those of a node side by side: consecutive ranks are near each other.

    Args:
        nodes: The node of each bundle. Ray puts bundles onto nodes in any order.
    """
    order = list(dict.fromkeys(nodes[bundle] for bundle in sorted(nodes)))
    return sorted(nodes, key=lambda bundle: (order.index(nodes[bundle]), bundle))


def shares_policy(config: LearnerConfig) -> bool:
    """Returns True if the policy is sharded, over several ranks or between a GPU and its host."""
    return config.num_ranks > 1 or config.offload


def _gpus_of(actors: Sequence[ActorHandle]) -> list[Gpu]:
    return results_of([actor.gpu.remote() for actor in actors])
