"""Two engines on two nodes of a Ray cluster, one of them not the learner's: the weights arrive in both, exactly."""

from __future__ import annotations

import pytest
import ray
from ray.cluster_utils import Cluster

from policies.loading import load_processor, vision_token_ids
from policies.small import save_small_policy
from rl.config import LearnerConfig, TrainConfig
from rl.learner import Learner
from rollout.config import RolloutConfig
from rollout.pool import RolloutPool, request_seed
from rollout.prompts import prompts_from
from rollout.sources.digit_sums import digit_sums, to_prompt
from rollout.types import Sampling
from tests.engines import LocalLearner, change_weights, group_of, largest_gap

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
    yield pool, LocalLearner(learner, pool)
    pool.close()


def seeds_of(prompt) -> list[int]:
    return [request_seed(0, 1, prompt.id, i) for i in range(3)]


async def answers(engine, version: int):
    """What one engine answers to all prompts."""
    return [await group_of(engine, prompt, SAMPLING, seeds_of(prompt), version) for prompt in PROMPTS]


def test_both_engines_agree_with_the_learner_after_a_sync_of_changed_weights(trainer):
    pool, link = trainer
    first, second = pool.engines
    assert first.node != second.node, "both engines are on one node: nothing crossed a network"
    change_weights(link.learner, seed=1)
    link.sync(1)
    both = [pool.run(answers(engine, version=1)) for engine in (first, second)]
    for groups in both:
        assert largest_gap(link.learner, groups) <= 1e-5
        assert {completion.policy_version for group in groups for completion in group.completions} == {1}
    ours, theirs = ([c.token_ids.tolist() for group in groups for c in group.completions] for groups in both)
    assert ours == theirs, "the same seeds gave other tokens on the other engine"


def test_an_engine_that_holds_an_older_version_than_expected_raises(trainer):
    pool, _ = trainer
    with pytest.raises(RuntimeError, match=r"has policy version 1, the loop expects 99"):
        pool.generate(PROMPTS, SAMPLING, [seeds_of(prompt) for prompt in PROMPTS], policy_version=99)


@pytest.mark.parametrize("trainer", ["dense"], indirect=True)
def test_an_engine_whose_node_has_lost_its_copy_of_the_weights_never_loads_an_old_one(trainer):
    pool, link = trainer
    away = next(engine for engine in pool.engines if engine.node in pool._client._mirrors._paths)
    version = max(group.completions[0].policy_version for group in pool.run(answers(pool.engines[0], version=0)))
    ray.kill(pool._client._mirrors._holders[away.node])
    change_weights(link.learner, seed=2)
    link.sync(version + 1)
    pool.run(pool.dispatcher.settled())
    assert away not in pool.engines and len(pool.engines) == 2
    for engine in pool.engines:
        assert largest_gap(link.learner, pool.run(answers(engine, version=version + 1))) <= 1e-5


def test_more_engines_than_the_cluster_has_cpus_for_are_refused_with_what_is_asked_and_what_there_is(two_nodes):
    # An engine is on one node: two nodes of one CPU have room for two engines of one CPU and for none of two.
    config = RolloutConfig(num_engines=64, threads_per_engine=1)
    with pytest.raises(
        ValueError, match=r"num_engines = 64 engines of 1 CPUs.*room for 2 \(node .*: 1 CPUs.*lower .* to 2"
    ):
        RolloutPool("anything", config, backend="shared_memory", banned_ids=[], policy_version=0)
    config = RolloutConfig(num_engines=1, threads_per_engine=2)
    with pytest.raises(ValueError, match=r"1 engines of 2 CPUs.*room for 0 .*: lower what one engine takes"):
        RolloutPool("anything", config, backend="shared_memory", banned_ids=[], policy_version=0)


def test_engines_that_find_no_room_in_time_are_given_up_with_what_ray_has(trainer):
    # The trainer's two engines have both CPUs.
    config = RolloutConfig(num_engines=2, start_timeout=1.0)
    with pytest.raises(
        RuntimeError, match=r"2 of 2 engines did not start within rollout.start_timeout = 1 s: Ray has node .*: 1 CPUs"
    ):
        RolloutPool("anything", config, backend="shared_memory", banned_ids=[], policy_version=0)
