"""Two engines on two nodes of a Ray cluster, one of them not the learner's: the weights arrive in both, exactly, and engines that
die or hang in the middle of generation, by real signals to real processes, leave a result as if nothing had been.

The tests come in order and share the engines: a fault ends one of them.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from policies.loading import load_processor, vision_token_ids
from rl.config import LearnerConfig, TrainConfig
from rl.learner import Learner
from rollout.config import RolloutConfig
from rollout.data.prompts import prompts_from
from rollout.engine.spec import EngineSpec
from rollout.pool.engine_actor import EngineHandle
from rollout.pool.engine_pool import EnginePool
from rollout.pool.seeds import request_seed
from rollout.tasks.digit_sums import digit_sums, to_prompt
from rollout.types import Group, Sampling
from rollout.weights.slab import WeightSlab, map_slab
from rollout.weights.slab_replicas import SlabReplicas
from tests.engines import LocalLearner, change_weights, group_of, largest_gap, process_of
from tests.zygote import Zygote

pytestmark = pytest.mark.engine

CONFIG = RolloutConfig(num_engines=2, dtype="float32", max_tokens=112, max_model_len=256, engine_timeout=20.0)
PROMPTS = prompts_from(digit_sums("train", num_prompts=6), to_prompt)[:6]
SEEDS = [[request_seed(0, 1, prompt.id, i) for i in range(4)] for prompt in PROMPTS]
SAMPLING = Sampling(max_tokens=112)


def spec_of(model: str | Path, config: RolloutConfig, banned_ids: Sequence[int] = ()) -> EngineSpec:
    return EngineSpec(model=model, config=config, backend="shared_memory", banned_ids=tuple(banned_ids))


@pytest.fixture(scope="module")
def two_nodes(zygote: Zygote) -> Iterator[Cluster]:
    """Two Ray nodes on this machine: separate schedulers and object stores, as on two machines."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=zygote.runtime_env)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_replica_that_is_lost_is_made_anew_and_named_once_in_the_next_refresh(two_nodes):
    slab = WeightSlab(100)
    here = ray.get_runtime_context().get_node_id()
    away = next(node["NodeID"] for node in ray.nodes() if node["NodeID"] != here)
    replicas = SlabReplicas(source_node=here, path=slab.path, nbytes=100)
    try:
        slab.buffer.fill_(1)
        first = map_slab(replicas.path_on(away), 100)
        ray.kill(replicas._holders[away])
        slab.buffer.fill_(2)
        second = map_slab(replicas.path_on(away), 100)
        assert (first.unique().tolist(), second.unique().tolist()) == ([1], [2])
        slab.buffer.fill_(3)
        lost = replicas.refresh()
        assert list(lost) == [away] and "copy of the weights is lost" in lost[away]
        assert second.unique().tolist() == [3]
        assert replicas.refresh() == {}
    finally:
        replicas.close()
        slab.close()


@pytest.fixture(scope="module")
def link(two_nodes: Cluster, dense_policy: Path) -> Iterator[LocalLearner]:
    """Two engines whose weights have come by a sync: a replacement that kept those of the folder would answer otherwise."""
    banned = vision_token_ids(load_processor(dense_policy))
    pool = EnginePool(spec_of(dense_policy, CONFIG, banned))
    learner = Learner(
        TrainConfig(model=str(dense_policy), rollout=CONFIG, learner=LearnerConfig(dtype="float32", threads=1)),
        dense_policy,
    )
    change_weights(learner, seed=1)
    link = LocalLearner(learner, pool)
    link.sync(1)
    yield link
    pool.close()


@pytest.fixture(scope="module")
def pool(link: LocalLearner) -> EnginePool:
    return link.pool


@pytest.fixture(scope="module")
def undisturbed(pool: EnginePool) -> list[Group]:
    return pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=1)


async def answer(engine: EngineHandle, place: int, version: int = 1) -> Group:
    """What one engine says to one prompt."""
    return await group_of(engine, PROMPTS[place], SAMPLING, SEEDS[place], version)


async def answers(engine: EngineHandle, version: int = 1) -> list[Group]:
    """What one engine says to all prompts, asked at once: one behind the other they would take six times as many steps."""
    return await asyncio.gather(*(answer(engine, place, version) for place in range(len(PROMPTS))))


def test_both_engines_agree_with_the_learner_after_a_sync_of_changed_weights(link, pool):
    first, second = pool.engines
    assert first.node != second.node, "both engines are on one node: nothing crossed a network"
    both = [pool.run(answers(engine)) for engine in (first, second)]
    for groups in both:
        assert largest_gap(link.learner, groups) <= 1e-5
        assert {completion.policy_version for group in groups for completion in group.completions} == {1}
    ours, theirs = ([c.token_ids.tolist() for group in groups for c in group.completions] for groups in both)
    assert ours == theirs, "the same seeds gave other tokens on the other engine"


def test_an_engine_that_holds_an_older_version_than_expected_raises(pool):
    with pytest.raises(RuntimeError, match=r"has policy version 1, the loop expects 99"):
        pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=99)


def test_more_engines_than_the_cluster_has_cpus_for_are_refused_with_what_is_asked_and_what_there_is(two_nodes):
    # An engine is on one node: two nodes of one CPU have room for two engines of one CPU and for none of two.
    config = RolloutConfig(num_engines=64, threads_per_engine=1)
    with pytest.raises(
        ValueError, match=r"num_engines = 64 engines of 1 CPUs.*room for 2 \(node .*: 1 CPUs.*lower .* to 2"
    ):
        EnginePool(spec_of("anything", config))
    config = RolloutConfig(num_engines=1, threads_per_engine=2)
    with pytest.raises(ValueError, match=r"1 engines of 2 CPUs.*room for 0 .*: lower what one engine takes"):
        EnginePool(spec_of("anything", config))


def test_engines_that_find_no_room_in_time_are_given_up_with_what_ray_has(pool):
    # The pool's two engines have both CPUs.
    config = RolloutConfig(num_engines=2, start_timeout=1.0)
    with pytest.raises(
        RuntimeError, match=r"2 of 2 engines did not start within rollout.start_timeout = 1 s: Ray has node .*: 1 CPUs"
    ):
        EnginePool(spec_of("anything", config))


def generate_under(pool: EnginePool, fault: signal.Signals, which: str) -> tuple[list[Group], EngineHandle]:
    """All groups, with a signal to one engine's process while that engine works at some."""
    victim = pool.engines[0]
    process = process_of(victim, which)
    with ThreadPoolExecutor(1) as thread:
        groups = thread.submit(pool.generate, PROMPTS, SAMPLING, SEEDS, 1)
        time.sleep(0.3)  # a generation takes seconds
        assert not groups.done(), "too late for a fault in the middle of generation"
        process.send_signal(fault)
        return groups.result(timeout=120), victim


def assert_same(ours: Sequence[Group], theirs: Sequence[Group], places: Sequence[int] = range(len(PROMPTS))) -> None:
    """Every prompt once, every completion once, the same tokens with the same log-probabilities."""
    assert [group.prompt.id for group in ours] == [PROMPTS[place].id for place in places]
    for mine, other in zip(ours, [theirs[place] for place in places], strict=True):
        assert len(mine.completions) == len(other.completions) == 4
        for a, b in zip(mine.completions, other.completions, strict=True):
            assert a.token_ids.tolist() == b.token_ids.tolist()
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
            assert a.policy_version == b.policy_version == 1


def lives(pid: int, start: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == start and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("fault", "which"),
    [(signal.SIGKILL, "vllm"), (signal.SIGKILL, "actor"), (signal.SIGSTOP, "vllm")],
    ids=["vLLM's process is killed", "the actor is killed", "vLLM's process is stopped"],
)
def test_an_engine_lost_in_the_middle_of_generation_is_replaced_and_the_result_is_the_same(
    pool, undisturbed, fault, which
):
    before = pool.dispatcher.num_failures
    groups, victim = generate_under(pool, fault, which)
    assert_same(groups, undisturbed)
    pool.run(pool.dispatcher.wait_for_replacements())
    assert pool.dispatcher.num_failures == before + 1
    assert victim not in pool.engines
    assert len(pool.engines) == 2
    for engine in pool.engines:  # the new one too has the weights of the sync, not those that it started with
        assert_same([pool.run(answer(engine, 0))], undisturbed, places=[0])
    # Through the queue, both take part: engines that fail in a row, test after test, without a completion end the run.
    assert_same(pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=1), undisturbed)
    assert not [pid for pid, start in victim.processes.processes if lives(pid, start)]
    assert not [path for path in victim.processes.segments if path.exists()]


def test_an_engine_that_dies_while_it_has_nothing_to_do_is_left_out_of_the_next_sync_and_replaced(
    link, pool, undisturbed
):
    victim, failures = pool.engines[0], pool.dispatcher.num_failures
    process_of(victim, "vllm").send_signal(signal.SIGKILL)
    link.sync(1)  # long before anybody would have asked it for a sign of life
    assert_same(pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=1), undisturbed)
    pool.run(pool.dispatcher.wait_for_replacements())
    assert pool.dispatcher.num_failures == failures + 1 and victim not in pool.engines
    for engine in pool.engines:
        assert_same([pool.run(answer(engine, 0))], undisturbed, places=[0])


def test_an_engine_whose_node_has_lost_its_copy_of_the_weights_never_loads_an_old_one(link, pool):
    away = next(engine for engine in pool.engines if engine.node != pool._published.replicas.source_node)
    ray.kill(pool._published.replicas._holders[away.node])
    change_weights(link.learner, seed=2)
    link.sync(2)
    pool.run(pool.dispatcher.wait_for_replacements())
    assert away not in pool.engines and len(pool.engines) == 2
    for engine in pool.engines:
        assert largest_gap(link.learner, pool.run(answers(engine, version=2))) <= 1e-5


def test_an_engine_of_a_lost_node_waits_for_room_which_is_told_and_the_other_goes_on(
    two_nodes, link, pool, monkeypatch, caplog
):
    monkeypatch.setattr("rollout.pool.engine_pool.ROOM_CHECKED_EVERY", 1.0)
    two_nodes.remove_node(next(iter(two_nodes.worker_nodes)), allow_graceful=False)
    groups = pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=2)
    assert largest_gap(link.learner, groups) <= 1e-5 and len(pool.engines) == 1
    deadline = time.monotonic() + 60
    while "may have to wait for room" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.5)
    assert "Ray has room for 1 (node" in caplog.text
