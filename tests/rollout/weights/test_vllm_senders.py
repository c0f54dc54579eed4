"""vLLM's NCCL and CUDA IPC under the product's senders, on GPUs that are not there: small chunks, ranks that share the policy, and
engines that are lost at every stage of a sync.

The tests of one transport come in order and share engines and learner: a fault ends some of the engines.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rl.types import LearnerFailed
from rollout.config import Backend
from tests.engines import largest_gap, process_of
from tests.fake_gpus import open_groups
from tests.gpu_links import PROMPTS, SAMPLING, SEEDS, Link, gap_after_two_syncs
from tests.learning import rollout

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

SOON = 200
"""Seconds within which a sync ends that loses an engine. Ranks that wait for one another give up after an hour."""


@pytest.fixture(scope="module", params=["nccl", "ipc"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(scope="module")
def link(cluster: None, backend: Backend, moe_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """Two engines of a MoE, whose policy two ranks share."""
    link = Link(moe_policy, tmp_path_factory.mktemp(backend), backend, num_engines=2)
    yield link
    link.close()


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


def test_a_lost_rank_of_the_learner_is_replaced_and_the_same_engines_get_its_weights(link: Link):
    engines, failures = link.replaced(), link.failures()
    link.trained()
    checkpoint = link.folder / f"checkpoint-{link.version}"
    ranks = [each for each in psutil.Process().children(recursive=True) if "LearnerActor" in each.name()]
    lost = max(ranks, key=lambda rank: rank.pid)
    lost.send_signal(signal.SIGKILL)
    link.pool.sleep()
    with pytest.raises(LearnerFailed, match="a worker process died"):
        link.learner.step(rollout())
    link.pool.detach()
    link.learner.restart(checkpoint, checkpoint)
    link.pool.connect(link.learner.connect)
    link.sync()
    link.step()
    assert link.gap() <= 1e-5
    assert link.pool.engines == engines and link.failures() == failures


FAULTS = [
    "SIGKILL-start_weight_update-1",
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


def test_an_engine_in_which_one_bit_has_arrived_changed_is_replaced(link: Link, backend: Backend):
    if backend == "ipc":
        pytest.skip("engines read the learner's own memory")
    engines, failures = link.replaced(), link.failures()
    (link.folder / "FLIP-chunk-2").touch()
    link.step()
    assert not (link.folder / "FLIP-chunk-2").exists(), "no engine has come there"
    assert link.gap() <= 1e-5
    assert link.failures() == failures + 1 and len(set(link.pool.engines) & set(engines)) == 1
