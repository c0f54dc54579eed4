"""Every node of a cluster needs this project in this version: one sentence says which lacks it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from rollout.cluster import require_same_software

pytestmark = pytest.mark.slow  # two nodes of Ray


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_node_with_another_version_is_named_and_one_like_this_machine_is_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    require_same_software()  # a single node is this machine
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    require_same_software()
    other = tmp_path / "torch-1.13.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.13.1\n")
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    cluster.wait_for_nodes()
    with pytest.raises(ValueError, match=r"node \S+ differs .* torch: 1\.13\.1 instead of \d.*make setup"):
        require_same_software()
