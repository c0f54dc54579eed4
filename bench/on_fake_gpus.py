"""Runs the main job with weights sent by vLLM's NCCL or CUDA IPC, on GPUs that are not there.

    python -m bench.on_fake_gpus nccl --rollout.folder FOLDER --steps 20

The folder shows and steers what happens on the GPUs, as `tests.fake_gpus` says. All other options are those of
`recipes.digit_sums`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import cast
from unittest.mock import patch

from recipes.digit_sums import DigitSums, run
from rl.cli import main
from rollout.config import Backend
from tests.fake_gpus import FakeGpus, fake_actors


@dataclass(frozen=True, kw_only=True)
class OnFakeGpus(DigitSums):
    """The main job on GPUs that are not there."""

    rollout: FakeGpus = field(default_factory=lambda: FakeGpus(folder="runs/fake_gpus", **asdict(DigitSums().rollout)))


def run_on_fakes(backend: Backend, config: OnFakeGpus) -> None:
    """Runs the job; the learner has a rank for each engine, on the same GPU in case of CUDA IPC."""
    learner = replace(config.learner, cpu_ranks=config.rollout.num_engines)
    config = replace(config, rollout=replace(config.rollout, weight_transfer=backend), learner=learner)
    with fake_actors(), patch("rl.run.choose_backend", return_value=backend):
        run(config)


if __name__ == "__main__":
    backend = cast(Backend, sys.argv.pop(1))
    main(partial(run_on_fakes, backend), OnFakeGpus, __doc__)
