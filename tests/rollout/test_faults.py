"""Engines that die or hang in the middle of generation: real processes, real signals, and a result as if nothing had been."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from policies.loading import load_processor, vision_token_ids
from rl.config import LearnerConfig, TrainConfig
from rl.learner import Learner
from rollout.config import RolloutConfig
from rollout.pool import RolloutPool, request_seed
from rollout.prompts import prompts_from
from rollout.remote_engine import RemoteEngine
from rollout.sources.digit_sums import digit_sums, to_prompt
from rollout.types import CannotReplace, Group, Sampling
from tests.engines import LocalLearner, change_weights, group_of

pytestmark = pytest.mark.engine

CONFIG = RolloutConfig(num_engines=2, dtype="float32", max_tokens=160, max_model_len=256, engine_timeout=20.0)
PROMPTS = prompts_from(digit_sums("train", num_prompts=6), to_prompt)[:6]
SEEDS = [[request_seed(0, 1, prompt.id, i) for i in range(4)] for prompt in PROMPTS]
SAMPLING = Sampling(max_tokens=160)


@pytest.fixture(scope="module")
def link(dense_policy: Path) -> Iterator[LocalLearner]:
    """Two engines whose weights have come by a sync: a replacement that kept those of the folder would answer otherwise."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    banned = vision_token_ids(load_processor(dense_policy))
    pool = RolloutPool(dense_policy, CONFIG, backend="shared_memory", banned_ids=banned, policy_version=0)
    learner = Learner(
        TrainConfig(model=str(dense_policy), rollout=CONFIG, learner=LearnerConfig(dtype="float32", threads=1)),
        dense_policy,
    )
    change_weights(learner, seed=1)
    link = LocalLearner(learner, pool)
    link.sync(1)
    yield link
    pool.close()
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(link: LocalLearner) -> RolloutPool:
    return link.pool


@pytest.fixture(scope="module")
def undisturbed(pool: RolloutPool) -> list[Group]:
    return pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=1)


def process_of(engine: RemoteEngine, which: str) -> psutil.Process:
    """The actor's own process, or the one that vLLM has started in it."""
    assert engine.belongings is not None
    processes = [psutil.Process(pid) for pid, _ in engine.belongings.processes if psutil.pid_exists(pid)]
    if which == "actor":
        return processes[0]
    return next(process for process in processes if "EngineCore" in process.name() + " ".join(process.cmdline()))


def generate_under(pool: RolloutPool, fault: signal.Signals, which: str) -> tuple[list[Group], RemoteEngine]:
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


async def answers(engine: RemoteEngine, place: int) -> Group:
    return await group_of(engine, PROMPTS[place], SAMPLING, SEEDS[place], 1)


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
    pool.run(pool.dispatcher.settled())
    assert pool.dispatcher.num_failures == before + 1
    assert victim not in pool.engines
    assert len(pool.engines) == 2
    for engine in pool.engines:  # the new one too has the weights of the sync, not those that it started with
        assert_same([pool.run(answers(engine, place)) for place in range(len(PROMPTS))], undisturbed)
    # Through the queue, both take part: engines that fail in a row, test after test, without a completion end the run.
    assert_same(pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=1), undisturbed)
    assert not [pid for pid, start in victim.belongings.processes if lives(pid, start)]
    assert not [path for path in victim.belongings.segments if path.exists()]


def test_an_engine_that_dies_while_it_has_nothing_to_do_is_left_out_of_the_next_sync_and_replaced(
    link, pool, undisturbed
):
    victim, failures = pool.engines[0], pool.dispatcher.num_failures
    process_of(victim, "vllm").send_signal(signal.SIGKILL)
    link.sync(1)  # long before anybody would have asked it for a sign of life
    assert_same(pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=1), undisturbed)
    pool.run(pool.dispatcher.settled())
    assert pool.dispatcher.num_failures == failures + 1 and victim not in pool.engines
    for engine in pool.engines:
        assert_same([pool.run(answers(engine, 0))], undisturbed, places=[0])


def test_where_an_engine_cannot_be_replaced_alone_all_are_started_anew_and_the_result_is_the_same(
    link, pool, undisturbed, monkeypatch
):
    async def refuse() -> None:
        raise CannotReplace("By NCCL an engine cannot be replaced alone")

    before, lost = pool.metrics()["rollout/engine_failures"], pool.engines
    monkeypatch.setattr(pool.dispatcher, "_start_engine", refuse)
    with pytest.raises(CannotReplace, match="By NCCL .* The engine failed so: "):
        generate_under(pool, signal.SIGKILL, "vllm")
    with pytest.raises(CannotReplace):
        pool.sync(2, link.sync)
    pool.restart()
    link.connect()
    link.sync(1)
    assert_same(pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=1), undisturbed)
    assert not set(pool.engines) & set(lost)
    assert pool.metrics()["rollout/engine_failures"] == before + 1
    assert not [pid for engine in lost for pid, start in engine.belongings.processes if lives(pid, start)]
    assert not [path for engine in lost for path in engine.belongings.segments if path.exists()]
