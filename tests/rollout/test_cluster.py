"""Two engines on two nodes of a Ray cluster, one of them not the learner's: the weights arrive in both, exactly."""

from __future__ import annotations

from functools import partial

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from policies.export import exported_metadata, exported_parameters
from policies.loading import load_processor, vision_token_ids
from policies.small import save_small_policy
from rl.config import LearnerConfig, TrainConfig
from rl.learner import Learner
from rollout.config import RolloutConfig
from rollout.pool import RolloutPool, request_seed
from rollout.prompts import prompts_from
from rollout.sources.digit_sums import digit_sums, to_prompt
from rollout.types import Sampling
from rollout.weight_transfer import SharedMemorySender, WeightSource
from tests.engines import change_weights, largest_gap

pytestmark = pytest.mark.engine

CONFIG = RolloutConfig(num_engines=2, dtype="float32", max_tokens=12, max_model_len=128)
PROMPTS = prompts_from(digit_sums("train", num_prompts=6), to_prompt)[:6]
SAMPLING = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def two_nodes():
    """Two Ray nodes on this machine: separate schedulers and object stores, as on two machines."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module", params=["dense", "moe"])
def trainer(request, two_nodes, tmp_path_factory):
    """A pool of two engines, a learner with their weights, and a sender between them."""
    folder = save_small_policy(tmp_path_factory.mktemp("policy") / request.param, kind=request.param, seed=0)
    banned = vision_token_ids(load_processor(folder))
    pool = RolloutPool(folder, CONFIG, backend="shared_memory", banned_ids=banned, policy_version=0)
    learner = Learner(
        TrainConfig(model=str(folder), rollout=CONFIG, learner=LearnerConfig(dtype="float32", threads=1)), folder
    )
    source = WeightSource(
        metadata=partial(exported_metadata, learner.model),
        tensors=partial(exported_parameters, learner.model),
        dtype=torch.float32,
    )
    client = pool.client()
    yield pool, learner, client, SharedMemorySender(source, client)
    pool.close()


def generate(pool: RolloutPool, version: int):
    seeds = [[request_seed(0, version, prompt.id, i) for i in range(3)] for prompt in PROMPTS]
    return pool.generate(PROMPTS, SAMPLING, seeds, version)


def test_both_engines_agree_with_the_learner_after_a_sync_of_changed_weights(trainer):
    pool, learner, client, sender = trainer
    assert len({node for _, node in client.engines}) == 2, "both engines are on one node: nothing crossed a network"
    change_weights(learner, seed=1)
    sender.send_weights(1)
    groups = generate(pool, version=1)
    for engine in (0, 1):  # prompts go to the engines in turn
        assert largest_gap(learner, groups[engine::2]) <= 1e-5
    assert {completion.policy_version for group in groups for completion in group.completions} == {1}


def test_the_same_seeds_give_the_same_tokens_on_either_engine(trainer):
    pool, _, client, _ = trainer
    version = client.next_version
    seeds = [[request_seed(0, version, PROMPTS[0].id, i) for i in range(3)]] * 2
    first, second = pool.generate([PROMPTS[0]] * 2, SAMPLING, seeds, version)
    assert [c.token_ids.tolist() for c in first.completions] == [c.token_ids.tolist() for c in second.completions]


def test_an_engine_that_holds_another_version_than_expected_raises(trainer):
    pool, _, client, _ = trainer
    with pytest.raises(RuntimeError, match=rf"holds policy version {client.next_version}, the loop expects 99"):
        generate(pool, version=99)


def test_more_engines_than_the_cluster_has_cpus_for_are_refused_with_both_numbers(two_nodes):
    config = RolloutConfig(num_engines=64, threads_per_engine=2)
    with pytest.raises(ValueError, match=r"64 engines of 2 CPUs need 128, Ray has 2"):
        RolloutPool("anything", config, backend="shared_memory", banned_ids=[], policy_version=0)
