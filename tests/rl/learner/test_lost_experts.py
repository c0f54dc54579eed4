"""Experts to replay (R3) that stay at the engines: two ranks under Ray learn from them as from arrays, and from lost ones, too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.types import Score
from rl.config import LearnerConfig, TrainConfig
from rl.learner import Learner
from rl.learner.group import LearnerGroup
from rl.samples import Sample, make_samples
from rl.sapo import sapo_loss
from rollout.pool.stored_experts import StoredExperts
from rollout.types import Group
from tests.expert_engines import ExpertHandle, ExpertPool
from tests.learning import config, make_group

LAYERS, EXPERTS, TOP_K = 4, 8, 2
"""Of the small policy."""


def made_groups() -> list[Group]:
    """Four groups of three, with random experts."""
    rng = np.random.default_rng(0)

    def with_experts(group: Group) -> Group:
        def some(num_tokens: int) -> np.ndarray:
            order = rng.random((num_tokens, LAYERS, EXPERTS)).argsort(-1)
            return order[..., :TOP_K].astype(np.uint8)

        completions = [
            replace(completion, routed_experts=some(len(completion.token_ids))) for completion in group.completions
        ]
        return replace(group, completions=completions, prompt_routed_experts=some(len(group.prompt_token_ids)))

    return [with_experts(make_group(rng, number, with_images=True)) for number in range(4)]


class Lost(StoredExperts):
    """Experts of which nothing is left. `tests/rollout/pool/test_stored_experts.py` has them lost in earnest."""

    def fetch(self) -> None:
        return None


def lost(experts: np.ndarray | StoredExperts) -> Lost:
    return Lost(ref=None, shape=experts.shape, dtype=experts.dtype)


def samples_of(groups: Sequence[Group]) -> list[list[Sample]]:
    return make_samples(groups, [[Score(reward=float(r)) for r in (1, 0, 0)] for _ in groups])


def flat(groups: Sequence[Group]) -> list[Sample]:
    return [sample for group in samples_of(groups) for sample in group]


def options(num_ranks: int) -> TrainConfig:
    # So small a step leaves the weights, so that one learner can take several.
    learner = LearnerConfig(dtype="float32", cpu_ranks=num_ranks, routing_replay="R3")
    return replace(config(learning_rate=1e-20), learner=learner)


@pytest.fixture
def two(cluster: None, moe_policy: Path) -> Iterator[LearnerGroup]:
    group = LearnerGroup(options(2), moe_policy, None, "shared_memory", sapo_loss)
    yield group
    group.close()


@pytest.fixture
def pool(cluster: None) -> Iterator[ExpertPool]:
    pool = ExpertPool(ExpertHandle(lambda: made_groups()))
    yield pool
    pool.close()


def unknown(experts: np.ndarray) -> np.ndarray:
    return np.full_like(experts, 255)


def with_some(change: Callable[[Any], Any], groups: Sequence[Group]) -> list[Group]:
    """Changes the experts of the first group's second completion, and those of the last group's prompt and first completion."""
    first, *others, last = groups
    a, b, c = first.completions
    first = replace(first, completions=[a, replace(b, routed_experts=change(b.routed_experts)), c])
    a, b, c = last.completions
    last = replace(
        last,
        completions=[replace(a, routed_experts=change(a.routed_experts)), b, c],
        prompt_routed_experts=change(last.prompt_routed_experts),
    )
    return [first, *others, last]


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", "memory/"))}


@pytest.mark.slow  # two ranks
def test_two_ranks_replay_experts_out_of_the_store_as_they_do_arrays_and_go_on_without_those_lost(
    two: LearnerGroup, pool: ExpertPool
):
    arrays = made_groups()
    found = pool.generate(arrays)
    two.wait()
    assert all(
        isinstance(completion.routed_experts, StoredExperts) for group in found for completion in group.completions
    )
    expected = two.total_logprob(flat(arrays))
    assert two.total_logprob(flat(found)) == expected
    rolled = [replace(group, prompt_routed_experts=np.roll(group.prompt_routed_experts, 1, 0)) for group in arrays]
    assert two.total_logprob(flat(rolled)) != expected, "experts matter"

    two.step(samples_of(arrays))  # which takes the agreement of the passes above
    metrics = two.step(samples_of(found)).metrics
    assert metrics["policy/lost_experts"] == 0 and 0 < metrics["policy/routing_agreement"] < 1
    assert comparable(metrics) == pytest.approx(comparable(two.step(samples_of(arrays)).metrics), rel=1e-6)

    metrics = two.step(samples_of(with_some(lost, found))).metrics
    assert metrics.pop("policy/lost_experts") == 1 + 3, "the last group has lost the experts of its prompt"
    known = two.step(samples_of(with_some(unknown, arrays))).metrics
    assert known.pop("policy/lost_experts") == 0
    assert comparable(metrics) == pytest.approx(comparable(known), rel=1e-6)


def test_a_step_without_any_experts_left_goes_on_by_the_router_and_says_so_once(
    moe_policy: Path, caplog: pytest.LogCaptureFixture
):
    groups = [
        replace(
            group,
            completions=[replace(each, routed_experts=lost(each.routed_experts)) for each in group.completions],
            prompt_routed_experts=lost(group.prompt_routed_experts),
        )
        for group in made_groups()
    ]
    learner = Learner(replace(options(1), num_minibatches=2), moe_policy)
    with caplog.at_level(logging.WARNING):
        metrics = learner.step(samples_of(groups)).metrics
    assert metrics["policy/lost_experts"] == 12 and "policy/routing_agreement" not in metrics
    [record] = [record for record in caplog.records if "lost" in record.message]
    assert "experts of 12 sequences" in record.message
    off = replace(learner.options, learner=replace(learner.options.learner, routing_replay="off"))
    free_choice = comparable(Learner(off, moe_policy).step(samples_of(groups)).metrics)
    metrics.pop("policy/lost_experts")
    assert comparable(metrics) == pytest.approx(free_choice, rel=1e-6)
