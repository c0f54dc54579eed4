"""vLLM's NCCL and CUDA IPC under the product's senders, with engines of two workers, on GPUs that are not there."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines import largest_gap, process_of
from tests.gpu_links import PROMPTS, SAMPLING, SEEDS, Link, gap_after_two_syncs

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def test_an_engine_of_two_workers_agrees_with_two_ranks_on_the_same_gpus(moe_policy: Path, tmp_path: Path):
    link = Link(moe_policy, tmp_path, "ipc", width=2)
    try:
        assert gap_after_two_syncs(link) <= 1e-5
    finally:
        link.close()


def test_an_engine_of_two_workers_agrees_with_four_ranks_and_its_requests_survive_its_loss(
    dense_policy: Path, tmp_path: Path
):
    link = Link(dense_policy, tmp_path, "nccl", width=2, num_ranks=4)
    try:
        assert gap_after_two_syncs(link) <= 1e-5
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(link.pool.generate, PROMPTS, SAMPLING, SEEDS, link.version)
            process_of(link.pool.engines[0], "vllm").send_signal(signal.SIGKILL)
            groups = asked.result(timeout=120)
        assert largest_gap(link.trained(), groups) <= 1e-5
        assert link.failures() == 1
    finally:
        link.close()
