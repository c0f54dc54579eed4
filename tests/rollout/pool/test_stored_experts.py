"""Experts that stay where the engines are: three Ray nodes on this machine, for the driver, for engines and for the learner.

The tests come in order; the last one takes the engines' node away.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray._private.internal_api import node_stats
from ray._private.serialization import SerializationContext
from ray.cluster_utils import Cluster

from rewards.types import Score
from rl.samples import Sample, make_samples
from rollout.config import RolloutConfig
from rollout.engine.spec import EngineSpec
from rollout.pool.engine_actor import EngineHandle
from rollout.pool.stored_experts import StoredExperts, join_experts, take_experts, with_reference
from rollout.types import Completion, GenerateCall, Group, Prompt, Request, Response, Sampling
from tests.expert_engines import ExpertHandle, ExpertPool
from tests.zygote import Zygote

LAYERS, TOP_K, P = 48, 8, 50
SIZES = (300, 310, 320, 330)
"""Tokens of a group's completions. Experts of 300 tokens are 115 KB: what has less than 100 KB Ray sends to the driver at once."""


def made_group(number: int, version_of_last: int = 0) -> Group:
    """A group of four; weights of another version may have sampled the last one."""
    rng = np.random.default_rng(number)
    completions = [
        Completion(
            text="",
            token_ids=np.full(size, number, np.int32),
            logprobs=np.zeros(size, np.float32),
            routed_experts=rng.integers(0, 128, (size, LAYERS, TOP_K), np.uint8),
            policy_version=version_of_last if size == SIZES[-1] else 0,
        )
        for size in SIZES
    ]
    prompt_experts = rng.integers(0, 128, (P, LAYERS, TOP_K), np.uint8)
    return Group(
        prompt=Prompt(id=f"p-{number}", messages=[]),
        prompt_token_ids=np.zeros(P, np.int32),
        completions=completions,
        prompt_routed_experts=prompt_experts,
    )


def made_groups() -> list[Group]:
    """Eight, of which every second has a last completion by other weights."""
    return [made_group(number, version_of_last=number % 2) for number in range(8)]


def samples_of(groups: Sequence[Group]) -> list[list[Sample]]:
    return make_samples(groups, [[Score(reward=0.0)] * len(group.completions) for group in groups])


def joined(groups: Sequence[Sequence[Sample]], share: slice = slice(None)) -> tuple[list[np.ndarray], int]:
    """[B, L, K, k] of each group in a rank's share, as the learner gets it, and the number of samples that have lost some."""
    from rl.learner.microbatches import _join_experts

    found = [_join_experts(group, P + SIZES[-1]) for group in groups[share]]
    return [experts_BLKk.numpy() for experts_BLKk, _ in found], sum(num_lost for _, num_lost in found)


def test_parts_of_stored_experts_are_counted_from_where_they_begin():
    whole = StoredExperts(ref=None, shape=(10, 2, 1), dtype=np.dtype(np.uint8))
    assert len(whole) == 10 and whole[:4].shape == (4, 2, 1) and whole[:4].start == 0
    assert (whole[4:].start, len(whole[4:])) == (4, 6)
    assert (whole[4:][1:3].start, len(whole[4:][1:3])) == (5, 2)
    assert (whole[4:][:99].start, len(whole[4:][:99]), len(whole[4:2])) == (4, 6, 0)
    again = join_experts(whole[2:4], whole[4:9])
    assert (again.start, again.shape) == (2, (7, 2, 1))
    assert join_experts(np.array([[[1]]]), np.array([[[2]], [[3]]])).ravel().tolist() == [1, 2, 3]


@pytest.mark.parametrize("has_prompt", [True, False])
def test_a_response_and_its_experts_part_and_meet_again(has_prompt: bool):
    prompt, own = np.arange(2)[:, None, None], np.arange(2, 5)[:, None, None]
    completion = Completion(text="x", token_ids=np.zeros(3, np.int32), routed_experts=own)
    response = Response(
        index=7,
        completion=completion,
        prompt_token_ids=np.zeros(2, np.int32),
        prompt_routed_experts=prompt if has_prompt else None,
    )
    light, array = take_experts(response)
    assert array.ravel().tolist() == ([0, 1, 2, 3, 4] if has_prompt else [2, 3, 4])
    whole = with_reference(light, "reference")
    its = whole.completion.routed_experts
    assert (its.ref, its.start, its.shape, its.dtype) == ("reference", 2 if has_prompt else 0, (3, 1, 1), own.dtype)
    assert (whole.index, whole.completion.text) == (7, "x")
    if has_prompt:
        before = whole.prompt_routed_experts
        assert (before.ref, before.start, before.shape) == ("reference", 0, (2, 1, 1))
    else:
        assert whole.prompt_routed_experts is None


@pytest.mark.parametrize(("returns_experts", "polled"), [(True, "poll_storing"), (False, "poll")])
def test_only_an_engine_that_returns_experts_stores_any(
    monkeypatch: pytest.MonkeyPatch, returns_experts: bool, polled: str
):
    called: list[str] = []

    class Actor:
        """Notes what it is asked, and does not answer."""

        def __getattr__(self, name: str) -> SimpleNamespace:
            def remote(*args: object) -> asyncio.Future | SimpleNamespace:
                called.append(name)
                never = asyncio.get_running_loop().create_future()
                return SimpleNamespace(completed=lambda: never) if name == "poll_storing" else never

            return SimpleNamespace(remote=remote)

    made = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=Actor))
    monkeypatch.setattr("rollout.pool.engine_actor.ray.remote", lambda kind: made)
    spec = EngineSpec(
        model="unused",
        config=RolloutConfig(),
        backend="shared_memory",
        banned_ids=(),
        return_routed_experts=returns_experts,
    )
    call = GenerateCall(
        request=Request(prompt=Prompt(id="p", messages=[])),
        sampling=Sampling(max_tokens=1),
        seeds={0: 0},
        policy_version=0,
    )

    async def main() -> None:
        handle = EngineHandle(spec)
        response = asyncio.ensure_future(anext(handle.generate(call)))
        await asyncio.sleep(0.1)
        assert called == ["start", "submit", polled]
        response.cancel()
        await handle._client.close()

    asyncio.run(main())


@pytest.fixture(scope="module")
def end_engines_node(zygote: Zygote) -> Iterator[Callable[[], None]]:
    """Three nodes, each with a scheduler and an object store. Ray notices within seconds that one is gone."""
    soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": soon})
    try:
        options = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
        engines, _ = (cluster.add_node(resources={place: 100}, **options) for place in ("engines", "learner"))
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error", runtime_env=zygote.runtime_env)
        yield lambda: cluster.remove_node(engines, allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()


def engine(place: str = "engines", **options) -> ExpertHandle:
    return ExpertHandle(made_groups, resources={place: 1}, **options)


@pytest.fixture
def pool_of(end_engines_node) -> Iterator[Callable[..., ExpertPool]]:
    """Makes pools, and closes them at the test's end."""
    pools = []

    def make(*engines: ExpertHandle, **options) -> ExpertPool:
        pools.append(ExpertPool(*engines, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def on_learner(*args) -> tuple[list[np.ndarray], int]:
    """What `joined` returns in a process of the learner's node."""
    return ray.get(ray.remote(joined).options(resources={"learner": 1}, num_cpus=0, max_retries=0).remote(*args))


def stored_bytes(place: str | None) -> int:
    """Bytes in the object store of the node with a resource; None: the driver's."""
    places = {"engines", "learner"}
    for node in ray.nodes():
        if node["Alive"] and (place in node["Resources"] if place else not places & set(node["Resources"])):
            stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
            return stats.object_store_bytes_used
    raise AssertionError(f"no node {place}")


def wait_until_empty() -> None:
    """Waits until no node holds experts any more. Fails after a while."""
    end = time.monotonic() + 30
    while sum(map(stored_bytes, (None, "engines", "learner"))) > 50_000:
        assert time.monotonic() < end, "references are still held"
        time.sleep(0.2)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list:
    """Everything that this process unpickles out of Ray's object stores."""
    found: list = []
    original = SerializationContext.deserialize_objects

    def noting(self, *args):
        results = original(self, *args)
        found.extend(results)
        return results

    monkeypatch.setattr(SerializationContext, "deserialize_objects", noting)
    return found


def same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


@pytest.mark.slow
def test_the_driver_gets_no_experts_and_a_rank_gets_its_own_which_are_dropped_after_each_step(pool_of, received: list):
    groups = made_groups()
    size_of_group = (P + sum(SIZES)) * LAYERS * TOP_K
    pool = pool_of(engine(), engine())
    for _ in range(3):  # steps
        found = pool.generate(groups)
        assert not any(isinstance(each, np.ndarray) for each in received)
        assert stored_bytes(None) < 50_000
        # The prompt's experts are there once a group, not four times.
        assert stored_bytes("engines") == pytest.approx(8 * size_of_group, rel=0.01)
        arrays, num_lost = on_learner(samples_of(found), slice(2, 4))
        assert same(arrays, joined(samples_of(groups[2:4]))[0]) and num_lost == 0
        assert (arrays[1][3, :P] == 255).all(), "weights of another version have read the prompt for the fourth"
        # Those of two groups, not of eight, and what the call itself brought and returned.
        assert 2 * size_of_group <= stored_bytes("learner") < 6 * size_of_group
        del found, arrays
        received.clear()
        wait_until_empty()
    fetched = pool.generate(groups[:1])[0].completions[1].routed_experts.fetch()
    assert np.array_equal(fetched, groups[0].completions[1].routed_experts)
    assert any(isinstance(each, np.ndarray) for each in received), "what the assertions above look for"


@pytest.mark.slow
@pytest.mark.parametrize(("dies", "num_engines"), [(6, 2), ("storing", 1)])
def test_experts_outlive_an_engine_that_is_killed_in_a_group_or_after_it(pool_of, dies: int | str, num_engines: int):
    groups = made_groups()[:3]
    spare = engine()
    found = pool_of(engine(dies=dies), spare=[spare]).generate(groups)
    actors = {completion.routed_experts.ref.task_id().actor_id() for group in found for completion in group.completions}
    assert len(actors) == num_engines, (
        "of the one that has died, unless its experts were stored and their responses not sent"
    )
    os.kill(ray.get(spare.actor.pid.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(spare.actor.pid.remote())
    arrays, num_lost = on_learner(samples_of(found))
    assert same(arrays, joined(samples_of(groups))[0]) and num_lost == 0


@pytest.mark.slow
def test_experts_that_are_lost_with_their_node_are_unknown_and_counted(pool_of, end_engines_node: Callable[[], None]):
    groups = made_groups()[:2]
    [safe] = pool_of(engine("learner")).generate(groups[:1])
    [lost] = pool_of(engine()).generate(groups[1:])
    end_engines_node()
    arrays, num_lost = on_learner(samples_of([safe, lost]))
    assert num_lost == 4
    assert np.array_equal(arrays[0], joined(samples_of(groups[:1]))[0][0])
    assert (arrays[1] == 255).all()
