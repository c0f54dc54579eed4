"""Runs the main job with weights sent by vLLM's NCCL or CUDA IPC, on GPUs that are not there.

    python -m bench.on_fake_gpus nccl FOLDER --steps 20

FOLDER shows and steers what happens on the GPUs, as `tests.fake_gpus` says. All other options are those of `recipes.digit_sums`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import cast
from unittest.mock import patch

from recipes.digit_sums import DigitSums, run
from rl.cli import parse
from rollout.config import Backend
from tests.fake_gpus import FakeGpus, fake_actors


def main(backend: Backend, folder: str, words: list[str]) -> None:
    """Runs the job; the learner has a rank for each engine, on the same GPU in case of CUDA IPC."""
    config = parse(DigitSums, words, __doc__)
    options = {**asdict(config.rollout), "weight_transfer": backend}
    learner = replace(config.learner, cpu_ranks=config.rollout.num_engines)
    config = replace(config, rollout=FakeGpus(folder=folder, **options), learner=learner)
    with fake_actors(), patch("rl.run.choose_backend", return_value=backend):
        run(config)


if __name__ == "__main__":
    main(cast(Backend, sys.argv[1]), sys.argv[2], sys.argv[3:])
