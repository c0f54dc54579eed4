"""The cases of `test_v2_runner.py`, for a process with the plugin `tests.v2_runner`: the engine's tests, with an engine that also
returns its experts; and what only this runner can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from rollout.engine import vllm_engine
from rollout.pool.dispatcher import Dispatcher
from rollout.pool.teacher import TeacherScorer
from rollout.types import Group, Prompt, Sampling, token_versions, unknown_expert
from tests.engines import EngineThread, change_weights, gaps_of, largest_gap
from tests.modalities import CONFIG, PROMPTS, picture, prompt
from tests.rollout.pool import test_teacher
from tests.rollout.weights import test_adapter_sync, test_weight_sync

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SHORT = Sampling(max_tokens=12)
SOME = [PROMPTS[place] for place in (0, 1, 2, 5, 8, 11)]  # text, tools, an image, several, a video, all
LONG = prompt("long", "What is 2 + 2? " * 20, picture(64, 64))
"""311 tokens; the prefix cache has blocks of 32."""
NUM_LAYERS = 4


class BriefEngine(EngineThread):
    """An engine that gives one completion for each prompt, of a third of the tokens: in the interpreter each takes 20 ms."""

    def begin(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, num_completions: int = 1, seed: int = 0
    ) -> Future[list[Group]]:
        sampling = replace(sampling, max_tokens=sampling.max_tokens // 3)
        return super().begin(prompts, sampling, num_completions=1, seed=seed)


def start_hurried(make_engine: type[EngineThread], *args: Any, **options: Any) -> EngineThread:
    """Starts an engine with the vision tower's kernel replaced, which takes as long as all others: one engine's is enough."""
    with mock.patch("vllm.model_executor.models.qwen3_vl.HAS_TRITON", False):
        return make_engine(*args, **options)


@pytest.fixture(scope="module")
def dense_pair(dense_policy: Path) -> Iterator[test_weight_sync.Pair]:
    with test_weight_sync.connected(dense_policy, BriefEngine(dense_policy, CONFIG)) as pair:
        yield pair


@pytest.fixture(scope="module")
def moe_pair(moe_policy: Path) -> Iterator[test_weight_sync.Pair]:
    engine = start_hurried(BriefEngine, moe_policy, CONFIG, return_routed_experts=True)
    with test_weight_sync.connected(moe_policy, engine) as pair:
        yield pair


@pytest.fixture(scope="module", params=["dense", "moe"])
def pair(request: pytest.FixtureRequest) -> test_weight_sync.Pair:
    return request.getfixturevalue(f"{request.param}_pair")


def test_the_engine_takes_the_v2_runner_and_schedules_asynchronously(pair):
    config = pair[0].engine._llm.vllm_config
    assert config.use_v2_model_runner and config.scheduler_config.async_scheduling


groups = test_weight_sync.groups
test_tokens = test_weight_sync.test_engine_and_learner_read_the_same_tokens_of_every_modality
test_modalities = test_weight_sync.test_engine_and_learner_agree_on_every_modality_in_one_batch
test_syncs = test_weight_sync.test_engine_and_learner_agree_after_each_of_two_syncs_of_changed_weights


folder = test_adapter_sync.folder
test_adapters = test_adapter_sync.test_engine_and_learner_agree_after_each_of_two_syncs_of_adapters


@pytest.fixture(scope="module")
def exported(folder: Path) -> Iterator[test_adapter_sync.Exported]:
    engine = start_hurried(BriefEngine, folder, test_adapter_sync.CONFIG, lora_rank=test_adapter_sync.LORA.rank)
    yield test_adapter_sync.Exported(test_adapter_sync.make_learner(folder, 3), folder, engine)
    engine.close()


teacher = test_teacher.teacher


@pytest.fixture(scope="module")
def served(teacher: Path, dense_policy: Path) -> Iterator[SimpleNamespace]:
    """A `Teacher` without Ray: the same scorer in front of one engine."""
    reads = test_teacher.READS
    engine = start_hurried(EngineThread, teacher, reads, student=dense_policy)

    async def make_queue() -> Dispatcher:
        return Dispatcher(None, [engine.engine], capacity=64, timeout=300.0, max_failures=0)

    def submit(group: Group) -> Future[list[np.ndarray]]:
        return engine.start(scorer.score(group))

    queue = engine.start(make_queue()).result(timeout=10)
    scorer = TeacherScorer(test_teacher.PROCESSOR, reads.temperature, queue)
    try:
        yield SimpleNamespace(submit=submit)
    finally:
        engine.start(queue.close()).result(timeout=10)
        engine.close()


def test_teachers_logprobs(served, teacher):
    # Prompts of 17 to 90 tokens, read 48 at once; an answer of 100; an episode, and one that could not begin.
    lengths = [(1, 12), (100,), (12,), (12,), (12,), (12,)]
    groups = [test_teacher.answered(prompt, its) for prompt, its in zip(SOME, lengths, strict=True)]
    test_teacher.check_readings(served, teacher, [*groups, test_teacher.episode(PROMPTS[0])])


@contextmanager
def replaying(learner) -> Iterator[None]:
    """Makes the learner replay the engine's experts (R3)."""
    options = learner.options
    learner.options = replace(options, learner=replace(options.learner, routing_replay="R3"))
    learner.routing.take_agreement()
    try:
        yield
    finally:
        learner.options = options


def agreement(learner, groups: Sequence[Group]) -> tuple[int, int]:
    """In how many choices of a token and layer the learner's router agrees with the engine's; and how many it returned."""
    with replaying(learner):
        assert largest_gap(learner, groups) <= 1e-5
        return learner.routing.take_agreement()


def num_choices(groups: Sequence[Group]) -> int:
    """No forward pass has the last token of a completion as input."""
    lengths = [
        len(group.prompt_token_ids) + len(completion.token_ids) - 1
        for group in groups
        for completion in group.completions
    ]
    return NUM_LAYERS * sum(lengths)


def test_the_engines_experts_are_the_learners_choices_for_each_token_of_every_modality(moe_pair):
    engine, learner, sender = moe_pair
    change_weights(learner, 5)
    sender.send_weights(engine.engine.policy_version + 1)
    groups = engine.generate(PROMPTS, SHORT)
    assert agreement(learner, groups) == (num_choices(groups),) * 2
    # Each token with the experts of the token before it: the count can tell.
    shifted = [
        replace(group, prompt_routed_experts=np.roll(group.prompt_routed_experts, 1, axis=0)) for group in groups
    ]
    with replaying(learner):
        assert largest_gap(learner, shifted) > 1e-3
        agreeing, compared = learner.routing.take_agreement()
    assert compared == num_choices(groups) and agreeing < compared / 2


def test_a_dense_policys_engine_returns_no_experts(dense_pair):
    [group] = dense_pair[0].generate(PROMPTS[:1], SHORT, num_completions=1)
    assert group.prompt_routed_experts is None and group.completions[0].routed_experts is None


@pytest.fixture
def cached(monkeypatch) -> list[int]:
    """How many tokens of each request have come from the prefix cache, in the order of the answers."""
    found: list[int] = []

    def noting(index, output, **options):
        found.append(output.num_cached_tokens)
        return as_response(index, output, **options)

    as_response = vllm_engine.as_response
    monkeypatch.setattr(vllm_engine, "as_response", noting)
    return found


def test_experts_from_the_prefix_cache_are_those_of_the_present_weights(moe_pair, cached):
    engine, learner, sender = moe_pair
    for seed in (6, 7):
        change_weights(learner, seed)
        sender.send_weights(engine.engine.policy_version + 1)
        cached.clear()
        for asked in range(2):
            groups = engine.generate([LONG], SHORT, seed=asked)
            assert agreement(learner, groups) == (num_choices(groups),) * 2
        assert cached == [0, 288]


def test_experts_of_an_episode_are_the_learners_choices_in_all_turns_and_observations(moe_pair, cached, monkeypatch):
    engine, learner, _ = moe_pair
    test_weight_sync.end_turns_soon(engine, monkeypatch)
    groups = test_weight_sync.play(moe_pair, [LONG], Sampling(max_tokens=150))
    turns = [len(completion.turns) for group in groups for completion in group.completions]
    assert max(turns) == 3
    assert sum(number >= 288 for number in cached) >= sum(turns) - len(turns), "later turns begin with what is cached"
    assert agreement(learner, groups) == (num_choices(groups),) * 2


def known_experts(group: Group) -> np.ndarray:
    """[P + T] True at tokens whose experts the engine has returned, in a group of one completion."""
    experts = np.concatenate([group.prompt_routed_experts, group.completions[0].routed_experts])
    known = experts != unknown_expert(experts.itemsize)
    assert (known.any((1, 2)) == known.all((1, 2))).all()
    return known.all((1, 2))


def test_tokens_that_syncs_meet_name_their_versions_and_experts_of_what_was_computed_again_are_unknown(moe_pair):
    engine, learner, _ = moe_pair
    groups = test_weight_sync.check_versions(moe_pair, SOME, Sampling(max_tokens=72), clock=Sampling(max_tokens=12))
    last = engine.engine.policy_version
    newest, num_known = [], 0
    for group in groups:
        versions, known = token_versions(group.completions[0]), known_experts(group)
        num_new = int((versions == versions.max()).sum())
        first = len(known) - num_new if num_new < len(versions) else 0  # an answer that no sync has met has all
        assert known.tolist() == [first <= place < len(known) - 1 for place in range(len(known))]
        if versions.max() == last:
            newest.append(group)
            num_known += NUM_LAYERS * int(known.sum())
    assert len(newest) > 3, "most have to be met by the last sync"
    with replaying(learner):
        gaps = np.concatenate([gaps for group in newest for gaps in gaps_of(learner, group)])
        assert learner.routing.take_agreement() == (num_known, num_known)
    versions = np.concatenate([token_versions(group.completions[0]) for group in newest])
    assert np.nanmax(gaps[versions == last]) <= 1e-5
