"""vLLM's NCCL and CUDA IPC under the product's senders, on GPUs that are not there: small chunks, ranks that share the policy, and
engines that are lost at every stage of a sync.

The tests of one transport come in order and share engines and learner: a fault ends some of the engines.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import ray

from policies.loading import load_processor, vision_token_ids
from rl.config import LearnerConfig, OptimizerConfig, TrainConfig
from rl.learner import Learner
from rl.learner.group import LearnerGroup
from rl.sapo import sapo_loss
from rollout.cluster import Gpu
from rollout.config import Backend
from rollout.engine.spec import EngineSpec
from rollout.pool.engine_actor import EngineHandle
from rollout.pool.engine_pool import EnginePool
from rollout.types import Group, Sampling
from tests.engines import group_of, largest_gap, process_of
from tests.fake_gpus import FakeGpus, fake_actors, open_groups
from tests.learning import rollout
from tests.modalities import CONFIG
from tests.modalities import PROMPTS as ALL_PROMPTS

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

PROMPTS = ALL_PROMPTS[2::3]  # with an image, several, a video, both
SAMPLING = Sampling(max_tokens=12)
SEEDS = [[100 * place + i for i in range(2)] for place in range(len(PROMPTS))]
SOON = 200
"""Seconds within which a sync ends that loses an engine. Ranks that wait for one another give up after an hour."""


class Link:
    """Engines and a learner that are connected by a transport, each engine on one GPU, or on `width`."""

    def __init__(self, policy: Path, folder: Path, backend: Backend, *, num_engines: int = 1, width: int = 1) -> None:
        self.folder, self.backend, self.version = folder, backend, 0
        options = replace(
            CONFIG, num_engines=num_engines, weight_transfer=backend, engine_timeout=60.0, max_failures=99
        )
        # As the learner's samples are rendered.
        options = replace(options, min_image_pixels=None, max_image_pixels=None, max_video_pixels=None)
        self.config = FakeGpus(folder=str(folder), width=width, **asdict(options))
        num_ranks = num_engines * width
        self.options = TrainConfig(
            model=str(policy),
            rollout=self.config,
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_updates=1),
            learner=LearnerConfig(dtype="float32", cpu_ranks=num_ranks),
        )
        banned = tuple(vision_token_ids(load_processor(policy)))
        spec = EngineSpec(model=policy, config=self.config, backend=backend, banned_ids=banned)
        node = ray.get_runtime_context().get_node_id()
        gpus = [Gpu(node=node, device=str(rank)) for rank in range(num_ranks)] if backend == "ipc" else []
        with ExitStack() as stack:
            stack.enter_context(fake_actors())  # for replacements, too
            self.learner = LearnerGroup(self.options, policy, None, backend, sapo_loss)
            stack.callback(self.learner.close)
            self.pool = EnginePool(spec, gpus=gpus)
            stack.callback(self.pool.close)
            self.pool.connect(self.learner.connect)
            self.close = stack.pop_all().close

    def step(self) -> None:
        """Trains once, and sends the new weights."""
        self.pool.sleep()
        self.learner.step(rollout())
        self.sync()

    def sync(self) -> dict[str, float]:
        self.version += 1
        return self.pool.sync(self.version, self.learner.sync)

    def replaced(self) -> list[EngineHandle]:
        """The engines, when all that were lost have been replaced."""
        self.pool.run(self.pool.dispatcher.wait_for_replacements())
        assert len(self.pool.engines) == self.config.num_engines
        return self.pool.engines

    def answers(self, engine: EngineHandle) -> list[Group]:
        """What one engine says with the present weights to prompts of every modality."""

        async def ask() -> list[Group]:
            asked = zip(PROMPTS, SEEDS, strict=True)
            async with asyncio.timeout(120):
                return await asyncio.gather(
                    *(group_of(engine, prompt, SAMPLING, seeds, self.version) for prompt, seeds in asked)
                )

        return self.pool.run(ask())

    def trained(self) -> Learner:
        """The learner's policy, in this process."""
        checkpoint = self.folder / f"checkpoint-{self.version}"
        if not checkpoint.exists():
            self.learner.save(checkpoint)
        one_rank = replace(self.options, learner=LearnerConfig(dtype="float32"))
        return Learner(one_rank, checkpoint)

    def gap(self) -> float:
        """The largest gap between the learner and any engine, all of which have the present version."""
        learner, gaps = self.trained(), []
        for engine in self.replaced():
            groups = self.answers(engine)
            assert {c.policy_version for group in groups for c in group.completions} == {self.version}
            gaps.append(largest_gap(learner, groups))
        return max(gaps)

    def failures(self) -> float:
        return self.pool.metrics()["rollout/engine_failures"]


@pytest.fixture(scope="module", params=["nccl", "ipc"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(scope="module")
def link(cluster: None, backend: Backend, moe_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """Two engines of a MoE, whose policy two ranks share."""
    link = Link(moe_policy, tmp_path_factory.mktemp(backend), backend, num_engines=2)
    yield link
    link.close()


def gap_after_two_syncs(link: Link) -> float:
    """The largest gap after either of two syncs of changed weights."""
    before, gaps = link.pool.engines, []
    for _ in range(2):
        stale = link.answers(before[0])
        link.step()
        assert largest_gap(link.trained(), stale) > 1e-3, "the weights did not change enough to prove anything"
        gaps.append(link.gap())
    assert link.pool.engines == before and link.failures() == 0
    return max(gaps)


def test_two_engines_of_a_moe_agree_with_two_ranks_after_each_of_two_syncs(link: Link):
    assert gap_after_two_syncs(link) <= 1e-5


def test_an_engine_lost_between_syncs_is_replaced_alone_and_gets_the_present_weights(link: Link, backend: Backend):
    lost, kept = link.pool.engines
    failures = link.failures()
    process_of(lost, "vllm").send_signal(signal.SIGKILL)
    groups = link.pool.generate(PROMPTS, SAMPLING, SEEDS, policy_version=link.version)
    assert largest_gap(link.trained(), groups) <= 1e-5
    assert link.gap() <= 1e-5
    assert kept in link.pool.engines and lost not in link.pool.engines
    assert link.failures() == failures + 1
    link.step()
    assert link.gap() <= 1e-5
    # The learner and each engine have one group, the present one.
    assert list(open_groups(link.config.folder).values()) == ([1, 1, 1] if backend == "nccl" else [])


def test_an_engine_lost_while_the_learner_trains_gets_the_new_weights_afterwards(link: Link):
    lost = link.pool.engines[1]
    link.pool.sleep()
    process_of(lost, "actor").send_signal(signal.SIGKILL)
    link.learner.step(rollout())
    link.sync()
    assert link.gap() <= 1e-5
    assert lost not in link.pool.engines


FAULTS = [
    "SIGKILL-start_weight_update-1",
    "SIGKILL-chunk-1",
    "SIGKILL-chunk-4",
    "SIGKILL-finish_weight_update-1",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sync_in_which_an_engine_is_lost_ends_soon_and_all_engines_have_its_weights(
    link: Link, backend: Backend, fault: str
):
    engines, failures = link.pool.engines, link.failures()
    link.pool.sleep()
    link.learner.step(rollout())
    (link.folder / fault).touch()
    started = time.monotonic()
    link.sync()
    assert time.monotonic() - started < SOON
    assert not (link.folder / fault).exists(), "no engine has come there"
    assert link.gap() <= 1e-5
    # In a broadcast the others would wait for the lost one.
    num_lost = 2 if backend == "nccl" and "finish" not in fault else 1
    assert link.failures() == failures + num_lost
    assert len(set(link.pool.engines) & set(engines)) == 2 - num_lost


def test_one_engine_of_one_rank_agrees_and_its_requests_survive_its_loss(
    backend: Backend, dense_policy: Path, tmp_path: Path
):
    link = Link(dense_policy, tmp_path, backend)
    try:
        assert gap_after_two_syncs(link) <= 1e-5
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(link.pool.generate, PROMPTS, SAMPLING, SEEDS, link.version)
            process_of(link.pool.engines[0], "vllm").send_signal(signal.SIGKILL)
            groups = asked.result(timeout=120)
        assert largest_gap(link.trained(), groups) <= 1e-5
        assert link.failures() == 1
    finally:
        link.close()


def test_an_engine_of_two_workers_agrees(moe_policy: Path, tmp_path: Path):
    link = Link(moe_policy, tmp_path, "ipc", width=2)
    try:
        assert gap_after_two_syncs(link) <= 1e-5
    finally:
        link.close()
