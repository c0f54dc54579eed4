"""The Ray shell around the learner: a process of its own, with its own threads, GPUs and connection to the engines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ray
import torch

from policies.export import exported_metadata, exported_parameters
from rl.config import TrainConfig
from rl.learner import Learner
from rl.objectives import Objective
from rl.types import Sample, StepReport
from rollout.config import Backend
from rollout.pool import GPU_SHARE, RayEngineClient, get
from rollout.weight_transfer import WeightSource, make_sender


class _LearnerActor:
    """A `Learner` and the sending end of the weight transfer in a process of its own."""

    def start(self, config: TrainConfig, model_path: str, resume_from: str | None, objective: Objective) -> None:
        self._learner = Learner(config, model_path, objective)
        if resume_from is not None:
            self._learner.load(Path(resume_from))

    def connect(self, backend: Backend, client: RayEngineClient) -> None:
        """Opens the way for weights."""
        model, rollout = self._learner.model, self._learner.config.rollout
        source = WeightSource(
            metadata=partial(exported_metadata, model),
            tensors=partial(exported_parameters, model),
            dtype=getattr(torch, rollout.dtype),
        )
        workers = rollout.num_engines * max(1, rollout.gpus_per_engine)
        self._sender = make_sender(backend, source, client, num_workers=workers)

    def step(self, groups: Sequence[Sequence[Sample]]) -> StepReport:
        return self._learner.step(groups)

    def sync(self, policy_version: int) -> dict[str, float]:
        return self._sender.send_weights(policy_version)

    def save(self, folder: str) -> None:
        self._learner.save(Path(folder))


class LearnerGroup:
    """The learner as the loop sees it. It starts while the caller goes on; `connect` waits for it.

    Args:
        config: The run's choices.
        model_path: Where to load the policy from.
        resume_from: A checkpoint whose optimizer state to restore; None starts afresh.
        backend: How weights will leave for the engines.
        objective: The loss.
    """

    def __init__(
        self,
        config: TrainConfig,
        model_path: str | Path,
        resume_from: str | Path | None,
        backend: Backend,
        objective: Objective,
    ) -> None:
        environment = {
            "OMP_NUM_THREADS": str(config.learner.threads),
            # Threads that spin while they wait would take the engines' cores.
            "OMP_WAIT_POLICY": "PASSIVE",
            "KMP_BLOCKTIME": "0",
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        }
        actor = ray.remote(_LearnerActor).options(
            # The learner works while the engines wait, so it claims no CPU of its own.
            num_cpus=0,
            num_gpus=GPU_SHARE if backend == "ipc" else config.learner.gpus,
            runtime_env={"env_vars": environment},
        )
        self._backend = backend
        self._actor = actor.remote()
        self._started = self._actor.start.remote(
            config, str(model_path), None if resume_from is None else str(resume_from), objective
        )

    def connect(self, client: RayEngineClient) -> None:
        """Opens the way for weights from the learner to the engines.

        Raises:
            RuntimeError: If the learner has not started; the message is its own.
        """
        get(self._started)
        get(self._actor.connect.remote(self._backend, client))

    def step(self, groups: Sequence[Sequence[Sample]]) -> StepReport:
        """Learns from one step's samples; see `Learner.step`."""
        # One call, one pickle: siblings' shared images travel once.
        return get(self._actor.step.remote(groups))

    def sync(self, policy_version: int) -> dict[str, float]:
        """Sends the weights to all engines and commits them as `policy_version`; returns `sync/` metrics."""
        return get(self._actor.sync.remote(policy_version))

    def save(self, folder: Path) -> None:
        """Writes weights and trainer state into `folder`."""
        get(self._actor.save.remote(str(folder)))

    def close(self) -> None:
        """Ends the learner's process."""
        ray.kill(self._actor)
