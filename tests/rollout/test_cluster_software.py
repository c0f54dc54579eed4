"""Every node of a cluster needs this project in this version: one sentence says which lacks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import logging, sys
import ray
from ray.cluster_utils import Cluster
from rollout.cluster import require_same_software

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
try:
    require_same_software()
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    require_same_software()
    print("nodes like this machine pass")
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": sys.argv[1]})
    cluster.wait_for_nodes()
    require_same_software()
except ValueError as error:
    print(error)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_with_another_version_is_named_and_one_like_this_machine_is_not(tmp_path: Path) -> None:
    other = tmp_path / "torch-1.13.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.13.1\n")
    # A process of its own: the suite's has one cluster for all its files.
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    passed, told = done.stdout.splitlines()
    assert passed == "nodes like this machine pass"
    assert "differs from this machine in torch: 1.13.1 instead of " in told and "run `make setup` there" in told
