"""Small random policies, written once for the whole session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On busy cores, small tensors take seconds when several OpenMP threads wait for one another."""
    if "torch" in sys.modules:  # tests of rewards need none, and start at once
        sys.modules["torch"].set_num_threads(1)


def _small_policy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from policies.small import save_small_policy

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
