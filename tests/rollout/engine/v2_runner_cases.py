"""The cases of `test_v2_runner.py`, for a process with the plugin `tests.v2_runner`: the engine's tests, with an engine that also
returns its experts; and what only this runner can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rollout.engine import vllm_engine
from rollout.pool.dispatcher import Dispatcher
from rollout.pool.teacher import TeacherScorer
from rollout.types import Group, Prompt, Sampling, token_versions, unknown_expert
from tests.engines import EngineThread, change_weights, gaps_of, largest_gap
from tests.modalities import CONFIG, PROMPTS
from tests.rollout.pool import test_teacher
from tests.rollout.weights import test_adapter_sync, test_weight_sync

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SHORT = Sampling(max_tokens=12)
NUM_LAYERS = 4


class BriefEngine(EngineThread):
    """An engine that gives one completion for each prompt, of a third of the tokens: in the interpreter each takes 45 ms."""

    def begin(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, num_completions: int = 1, seed: int = 0
    ) -> Future[list[Group]]:
        sampling = replace(sampling, max_tokens=sampling.max_tokens // 3)
        return super().begin(prompts, sampling, num_completions=1, seed=seed)


@pytest.fixture(scope="module")
def dense_pair(dense_policy: Path) -> Iterator[test_weight_sync.Pair]:
    with test_weight_sync.connected(dense_policy, BriefEngine(dense_policy, CONFIG)) as pair:
        yield pair


@pytest.fixture(scope="module")
def moe_pair(moe_policy: Path) -> Iterator[test_weight_sync.Pair]:
    with test_weight_sync.connected(moe_policy, BriefEngine(moe_policy, CONFIG, return_routed_experts=True)) as pair:
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


def test_syncs_in_flight(dense_pair):
    test_weight_sync.check_versions(dense_pair, Sampling(max_tokens=72), clock=Sampling(max_tokens=12))


folder = test_adapter_sync.folder
test_adapters = test_adapter_sync.test_engine_and_learner_agree_after_each_of_two_syncs_of_adapters


@pytest.fixture(scope="module")
def exported(folder: Path) -> Iterator[test_adapter_sync.Exported]:
    engine = BriefEngine(folder, test_adapter_sync.CONFIG, lora_rank=test_adapter_sync.LORA.rank)
    yield test_adapter_sync.Exported(test_adapter_sync.make_learner(folder, 3), folder, engine)
    engine.close()


teacher = test_teacher.teacher


@pytest.fixture(scope="module")
def served(teacher: Path, dense_policy: Path) -> Iterator[SimpleNamespace]:
    """A `Teacher` without Ray: the same scorer in front of one engine."""
    reads = test_teacher.READS
    engine = EngineThread(teacher, reads, student=dense_policy)

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


def test_teachers_logprobs(served, teacher, monkeypatch):
    some = [PROMPTS[place] for place in (0, 1, 2, 5, 8, 11)]  # text, tools, an image, several, a video, all
    monkeypatch.setattr(test_teacher, "PROMPTS", some)
    test_teacher.test_a_teachers_logprobs_are_those_of_the_learners_own_forward_pass_of_its_weights(served, teacher)


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


def test_experts_from_the_prefix_cache_are_those_of_the_present_weights(moe_pair, monkeypatch):
    engine, learner, sender = moe_pair
    cached = []

    def noting(index, output, **options):
        cached.append(output.num_cached_tokens)
        return as_response(index, output, **options)

    as_response = vllm_engine.as_response
    monkeypatch.setattr(vllm_engine, "as_response", noting)
    long = Prompt(
        id="long", messages=[{"role": "user", "content": "What is 2 + 2? " * 20}]
    )  # 300 tokens, blocks of 128
    for seed in (6, 7):
        change_weights(learner, seed)
        sender.send_weights(engine.engine.policy_version + 1)
        cached.clear()
        for asked in range(2):
            groups = engine.generate([long], SHORT, num_completions=1, seed=asked)
            assert agreement(learner, groups) == (num_choices(groups),) * 2
        assert cached == [0, 256]


def test_experts_of_what_a_sync_has_had_computed_again_are_unknown_and_the_others_the_learners(moe_pair):
    engine, learner, sender = moe_pair
    old = engine.engine.policy_version
    begun = engine.begin(PROMPTS[:8], Sampling(max_tokens=48))
    engine.generate(PROMPTS[8:9], Sampling(max_tokens=15))  # a clock: what has begun before has five tokens, too
    assert not begun.done(), "too late for a sync in the middle of generation"
    change_weights(learner, 8)
    sender.send_weights(old + 1)
    met = [which_met_a_sync(group) for group in begun.result(timeout=120)]
    completions = [completion for group in met for completion in group.completions]
    assert len(completions) > 4, "most have to be met"
    num_known = 0
    for completion in completions:
        versions = token_versions(completion)
        num_old = int((versions == old).sum())
        assert set(versions[num_old:]) == {old + 1}
        is_unknown = completion.routed_experts == unknown_expert(completion.routed_experts.itemsize)
        assert is_unknown[:num_old].all() and not is_unknown[num_old:-1].any()
        num_known += NUM_LAYERS * (len(versions) - num_old - 1)
    with replaying(learner):
        gaps = np.concatenate([gaps for group in met for gaps in gaps_of(learner, group)])
        assert learner.routing.take_agreement() == (num_known, num_known)
    named = np.concatenate([token_versions(completion) for completion in completions])
    assert np.nanmax(gaps[named == old + 1]) <= 1e-5
    assert np.isnan(gaps).mean() < 0.05, "most tokens have to be compared"


def which_met_a_sync(group: Group) -> Group:
    """The completions that two versions have sampled. Of their prompt no experts are known."""
    met = [completion for completion in group.completions if completion.token_versions is not None]
    if group.completions[0] in met:  # whose prompt's experts the group has
        assert (group.prompt_routed_experts == unknown_expert(group.prompt_routed_experts.itemsize)).all()
    return replace(group, completions=met, prompt_routed_experts=None)
