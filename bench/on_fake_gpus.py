"""Runs the main job with weights sent by vLLM's NCCL or CUDA IPC, on GPUs that are not there.

    python -m bench.on_fake_gpus nccl FOLDER --steps 20

FOLDER shows and steers what happens on the GPUs, as `tests.fake_gpus` says. All other options are those of `recipes.digit_sums`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from typing import cast
from unittest.mock import patch

from recipes.digit_sums import DigitSums, run
from rl.cli import main
from rollout.config import Backend
from tests.fake_gpus import FakeGpus, fake_actors


def run_on_fakes(backend: Backend, folder: str, config: DigitSums) -> None:
    """Runs the job; the learner has a rank for each engine, on the same GPU in case of CUDA IPC."""
    options = {**asdict(config.rollout), "weight_transfer": backend}
    learner = replace(config.learner, cpu_ranks=config.rollout.num_engines)
    config = replace(config, rollout=FakeGpus(folder=folder, **options), learner=learner)
    with fake_actors(), patch("rl.run.choose_backend", return_value=backend):
        run(config)


if __name__ == "__main__":
    backend, folder = cast(Backend, sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    main(partial(run_on_fakes, backend, folder), DigitSums, __doc__)
