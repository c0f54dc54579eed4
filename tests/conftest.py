"""Small random policies, written once for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policies.small import save_small_policy


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On busy cores, small tensors take seconds when several OpenMP threads wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dense_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small dense Qwen3-VL; read only."""
    return save_small_policy(tmp_path_factory.mktemp("policies") / "dense", kind="dense", seed=0)


@pytest.fixture(scope="session")
def moe_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Qwen3-VL-MoE; read only."""
    return save_small_policy(tmp_path_factory.mktemp("policies") / "moe", kind="moe", seed=0)


@pytest.fixture(params=["dense", "moe"])
def policy(request: pytest.FixtureRequest) -> Path:
    """Both of them, one after the other."""
    return request.getfixturevalue(f"{request.param}_policy")
