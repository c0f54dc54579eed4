"""Small random policies, written once for the whole session."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.ranks import RankPool
    from tests.zygote import Zygote

SHARED_MEMORY = Path("/dev/shm")
LONGEST = """
    test_cluster test_stored_experts test_vllm_senders test_resume test_weight_sync test_resume_modes test_rollback_run
    test_ranks test_asking test_hostile_checkpoints test_hostile_files test_faults_of_runs test_hostile test_episode_run
    test_vllm_workers test_distill test_v2_runner test_learner_options test_learner test_bad_rows test_judge_server test_doctor
    test_bench test_recipes test_adapter_sync test_published_weights test_reward_runner test_learner_group test_lost_experts
    test_sft test_transplant test_sandbox test_teacher test_code_cheats test_first_calls test_setup test_published_shapes
    test_rank_places test_cluster_software
    """.split()
"""Files that take 10 seconds and more, the longest first. The first two have clusters of their own, before others share one."""

# Recipes run in the tests' own process, or in one that a test starts, watches and ends itself.
os.environ.setdefault("SAPO_SUPERVISOR", "off")

# During the imports of torch, transformers and vLLM the garbage collector finds nothing and takes a fifth of the CPU time.
gc.disable()

# What a deadline would measure here is how busy the cores are.
settings.register_profile("busy cores", deadline=None)
settings.load_profile("busy cores")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: of two processes neither is left alone with one at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def nothing_leaks() -> Iterator[None]:
    """After the last test no process that the suite started lives on, and no segment of shared memory stays."""
    before = set(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else set()
    yield
    deadline = time.monotonic() + 30
    while (left := [*_children(), *_orphans(before)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, f"the suite left behind: {left}"


def _orphans(before: set[Path]) -> set[Path]:
    """Segments that are new and that nobody maps: what other programs on this machine work with is not the suite's."""
    from rollout.engine.vllm_processes import NAMES, segments_of

    new = {path for path in set(SHARED_MEMORY.iterdir()) - before if path.name.startswith(NAMES)}
    # joblib's carry the number of their process and are not mapped all the time.
    numbered = {path: re.findall(r"loky-(\d+)-", path.name) for path in new}
    alive = {path for path, pids in numbered.items() if any(psutil.pid_exists(int(pid)) for pid in pids)}
    return new - alive - segments_of(psutil.process_iter())


def _children() -> list[str]:
    """Living descendants of this process; Python's own, for resources and forks, end with it."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not re.search("resource_tracker|forkserver", command):
                found.append(f"{process.pid} {command[:80]}")
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On busy cores, small tensors take seconds when several OpenMP threads wait for one another."""
    if "torch" in sys.modules:  # tests of rewards need none, and start at once
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def zygote(nothing_leaks: None) -> Iterator[Zygote]:
    """What Ray's workers are copies of."""
    from tests.zygote import Zygote

    with tempfile.TemporaryDirectory() as folder:
        zygote = Zygote(folder)
        yield zygote
        zygote.close()


@pytest.fixture(scope="session")
def cluster(zygote: Zygote) -> Iterator[None]:
    """Ray on this machine as `train()` starts it, for all tests that can share it."""
    import ray

    from rollout.cluster import on_loopback

    options = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    with on_loopback():
        ray.init(address="local", **options, runtime_env=zygote.runtime_env)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """Four processes to learn in, of which a test may use fewer: they start when they are used."""
    from tests.ranks import RankPool

    pool = RankPool(4, tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


def _small_policy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from policies.small.qwen3_vl import save_small_policy

    return save_small_policy(tmp_path_factory.mktemp("policies") / kind, kind=kind, seed=0)


@pytest.fixture(scope="session")
def dense_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small dense Qwen3-VL; read only."""
    return _small_policy("dense", tmp_path_factory)


@pytest.fixture(scope="session")
def moe_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Qwen3-VL-MoE; read only."""
    return _small_policy("moe", tmp_path_factory)


@pytest.fixture(params=["dense", "moe"])
def policy(request: pytest.FixtureRequest) -> Path:
    """Both of them, one after the other."""
    return request.getfixturevalue(f"{request.param}_policy")
