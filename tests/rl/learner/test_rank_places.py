"""Consecutive ranks are on one node: those of a replica of the policy, and of an engine that shares their GPUs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rl.config import LearnerConfig
from rl.learner.group import bundle_width, by_node
from rollout.config import RolloutConfig
from tests.zygote import Zygote

ROOT = Path(__file__).resolve().parents[3]


def test_bundles_of_a_node_are_side_by_side_in_whatever_order_ray_places_them() -> None:
    assert by_node({0: "b", 1: "a", 2: "b", 3: "a"}) == [0, 2, 1, 3]
    assert by_node({3: "c", 2: "a", 1: "a", 0: "c"}) == [0, 3, 1, 2]
    assert by_node({0: "a"}) == [0]


@pytest.mark.parametrize(
    ("gpus", "replicas", "engine", "expected"),
    [
        (16, 2, 1, 8),  # a replica on each of two nodes
        (16, 2, 4, 8),  # and two engines beside it
        (16, 4, 4, 4),  # two replicas on each
        (16, None, 4, 4),  # one replica over both: only engines must be on one node
        (32, 2, 4, 4),  # a replica over two nodes
        (16, 8, 4, 4),  # an engine over two replicas
    ],
)
def test_a_bundle_holds_a_replica_where_a_node_of_8_can_or_else_an_engine(
    gpus: int, replicas: int | None, engine: int, expected: int
) -> None:
    rollout = RolloutConfig(gpus_per_engine=engine, weight_transfer="ipc")
    assert bundle_width(LearnerConfig(gpus=gpus, replicas=replicas), rollout, 8) == expected


def test_engines_with_gpus_of_their_own_need_no_bundles_of_the_learners() -> None:
    rollout = RolloutConfig(gpus_per_engine=4, weight_transfer="nccl")
    assert bundle_width(LearnerConfig(gpus=16), rollout, 8) == 1
    assert bundle_width(LearnerConfig(gpus=6, replicas=3), rollout, 8) == 2


PLACES = """
import logging, ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table, remove_placement_group
from rl.learner.group import claim_gpus, places_of_ranks
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 2})
cluster.add_node(num_cpus=0, num_gpus=2)
ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
cluster.wait_for_nodes()
for width in (1, 2):
    claim = claim_gpus(4, width)
    node_of = placement_group_table(claim)["bundles_to_node_id"]
    strategies = [place["scheduling_strategy"] for place in places_of_ranks(claim, width)]
    nodes = [node_of[strategy.placement_group_bundle_index] for strategy in strategies]
    print([node == nodes[0] for node in nodes])
    remove_placement_group(claim)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_ranks_of_two_nodes_are_numbered_node_by_node(zygote: Zygote, tmp_path: Path) -> None:
    """In a process of its own: another cluster may be up in this one."""
    script = tmp_path / "places.py"
    script.write_text(PLACES)
    ended = subprocess.run([*zygote.python, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.stdout.splitlines()[-2:] == 2 * ["[True, True, False, False]"], ended.stderr[-2000:]
