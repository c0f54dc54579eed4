"""The engine against the learner, fp32, every modality in one batch: they read the same tokens, mean the same policy, and a sync
brings every weight and drops every cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import psutil
import pytest
import torch

from policies.export import exported_metadata, exported_parameters
from policies.loading import vision_token_ids
from policies.small.qwen3_vl import TOKEN_IDS, save_small_policy
from rl.config import LearnerConfig, TrainConfig
from rl.learner import Learner
from rollout.environments.episodes import Episodes
from rollout.pool.dispatcher import Dispatcher
from rollout.rendering import render, require_same_tokens
from rollout.types import Completion, Done, EngineFailed, Group, Observation, Prompt, Sampling, token_versions
from rollout.weights.senders import SharedMemorySender
from rollout.weights.source import WeightSource, summed
from tests.engines import EngineThread, call_of, change_weights, gaps_of, largest_gap
from tests.modalities import CONFIG, PROMPTS, clip, prompt

pytestmark = pytest.mark.engine

Pair: TypeAlias = tuple[EngineThread, Learner, SharedMemorySender]


@contextmanager
def connected(folder: Path, engine: EngineThread) -> Iterator[Pair]:
    """The engine, a learner of the same weights, and a sender between them."""
    try:
        learning = LearnerConfig(dtype="float32", threads=1)
        learner = Learner(TrainConfig(model=str(folder), rollout=CONFIG, learner=learning), folder)
        source = WeightSource(
            metadata=partial(exported_metadata, learner.model),
            tensors=partial(exported_parameters, learner.model),
            dtype=torch.float32,
        )
        yield engine, learner, SharedMemorySender(source, engine)
    finally:
        engine.close()


@pytest.fixture(scope="module", params=["dense", "moe"])
def pair(request, tmp_path_factory):
    folder = save_small_policy(tmp_path_factory.mktemp("policy") / request.param, kind=request.param, seed=0)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
        engine = EngineThread(folder, replace(CONFIG, kv_cache_gib=0.75, verify_weights=True))
    with connected(folder, engine) as pair:
        yield pair


@pytest.fixture(scope="module")
def groups(pair):
    """One batch of all modalities, before any sync."""
    return pair[0].generate(PROMPTS, Sampling(max_tokens=12))


def test_engine_and_learner_read_the_same_tokens_of_every_modality(pair, groups):
    for group in groups:
        require_same_tokens(pair[1].processor, group)
        assert len(group.prompt_token_ids) >= len(render(pair[1].processor, group.prompt))
    counts = {
        group.prompt.id: [
            int((group.prompt_token_ids == TOKEN_IDS[f"<|{kind}_pad|>"]).sum()) for kind in ("image", "video")
        ]
        for group in groups
    }
    assert counts["image"] == [6, 0]
    assert counts["image under the limit"] == [4, 0]  # scaled up to 64 × 64
    assert 4 < counts["image over the limit"][0] <= 16  # scaled down to at most 128 × 128
    assert counts["several images"] == [4 + 9 + 8, 0]
    assert counts["video"] == [0, 2 * 6]
    assert counts["two videos"] == [0, 2 * 4 + 2 * 6]
    assert counts["images and videos, interleaved"] == [4 + 9, 2 * 4]


def test_the_option_decides_the_size_of_the_cache_whatever_the_environment_says(pair):
    cache = pair[0].engine._llm.vllm_config.cache_config
    assert cache.kv_cache_memory_bytes == 0.75 * 2**30


def test_engine_and_learner_agree_on_every_modality_in_one_batch(pair, groups):
    assert largest_gap(pair[1], groups) <= 1e-5
    for group in groups:
        assert largest_gap(pair[1], [group]) <= 1e-5, group.prompt.id


def test_the_answers_depend_on_what_the_video_shows(pair, groups):
    [group] = [group for group in groups if group.prompt.id == "video"]
    [other] = pair[0].generate([prompt("video", clip(4, 64, 96), "What happens?")], Sampling(max_tokens=12))
    assert other.prompt_token_ids.tolist() == group.prompt_token_ids.tolist()
    first, second = (each.completions[0].logprobs[:1] for each in (group, other))
    assert abs(first - second).max() > 1e-4


def test_an_engine_that_waits_leaves_the_cores_to_others(pair):
    processes = [child for child in psutil.Process().children(recursive=True) if child.name().startswith("VLLM")]
    pair[0].generate(PROMPTS[:1], Sampling(max_tokens=12))
    before = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(0.8)  # with a worker process, both would look for the next message without a pause for a second
    seconds = [sum(process.cpu_times()[:2]) - start for process, start in zip(processes, before, strict=True)]
    assert len(seconds) == 1 and max(seconds) < 0.4  # 0.01 on busy cores


def test_no_vision_token_is_sampled(pair, groups):
    sampled = {int(token) for group in groups for completion in group.completions for token in completion.token_ids}
    banned = vision_token_ids(pair[1].processor)
    assert TOKEN_IDS["<|video_pad|>"] in banned
    assert not sampled & set(banned)


def test_a_completion_knows_that_its_prompt_has_opened_a_thought(pair, monkeypatch):
    engine, _, _ = pair
    processor = engine.engine._processor
    [plain] = engine.generate(PROMPTS[:1], Sampling(max_tokens=2), num_completions=1)
    for opened, thinking in (("<think>\n", True), ("<think>\n\n</think>\n\n", False)):
        monkeypatch.setattr(processor, "chat_template", processor.chat_template + opened)
        [group] = engine.generate(PROMPTS[:1], Sampling(max_tokens=2), num_completions=1)
        assert len(group.prompt_token_ids) > len(plain.prompt_token_ids)
        assert group.completions[0].thinking == thinking
    assert not plain.completions[0].thinking


def test_more_prompts_than_a_step_has_room_for_wait_and_are_not_cut(pair):
    # 250 prompts of 95 tokens, a step takes 8,192: vLLM's CPU worker dies of a seeded request whose prompt it reads in pieces.
    long = Prompt(id="long", messages=[{"role": "user", "content": "x" * 90}])
    [group] = pair[0].generate([long], Sampling(max_tokens=2), num_completions=250)
    assert len(group.completions) == 250 and len(group.prompt_token_ids) == 95


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_of_one_token_alone_sampling_is_greedy(pair, narrow):
    greedy = pair[0].generate(PROMPTS[:2], Sampling(max_tokens=12, temperature=0.0), num_completions=2)
    drawn = pair[0].generate(PROMPTS[:2], Sampling(max_tokens=12, **narrow), num_completions=2)
    for ours, theirs in zip(greedy, drawn, strict=True):
        for one, other in zip(ours.completions, theirs.completions, strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert abs(other.logprobs).max() == 0.0  # of what was drawn from: there was no other


def test_a_presence_penalty_makes_tokens_come_again_less_often(pair):
    def repeats(penalty: float) -> int:
        sampling = Sampling(max_tokens=40, temperature=0.3, presence_penalty=penalty)
        completions = [c for group in pair[0].generate(PROMPTS[:2], sampling) for c in group.completions]
        return sum(len(c.token_ids) - len(set(c.token_ids.tolist())) for c in completions)

    assert repeats(2.0) < repeats(0.0) / 2


def test_engine_and_learner_agree_after_each_of_two_syncs_of_changed_weights(pair, groups):
    engine, learner, sender = pair
    for seed in (1, 2):
        change_weights(learner, seed)
        assert largest_gap(learner, groups) > 1e-2, "the weights did not change enough to prove anything"
        metrics = sender.send_weights(engine.engine.policy_version + 1)
        groups = engine.generate(PROMPTS, Sampling(max_tokens=12))
        assert largest_gap(learner, groups) <= 1e-5
        assert {c.policy_version for group in groups for c in group.completions} == {engine.engine.policy_version}
        assert metrics["sync/bytes"] >= sum(p.numel() * 4 for p in learner.model.parameters())


def test_one_bit_that_arrives_changed_is_found_and_its_weight_named(pair):
    engine, learner, sender = pair
    change_weights(learner, 3)
    source, sums = summed(sender.source)
    for _ in source.tensors():
        pass
    sender.copy_to_slab()
    engine.start_weight_update()
    engine.update_weights({})
    engine.verify_weights(sums)
    sender.slab.buffer[sender.layout[1].offset] ^= 1
    with pytest.raises(EngineFailed, match=rf"1 of {len(sums)} weights .* {sender.layout[1].name} has other bits"):
        engine.verify_weights(sums)
    engine.next_version = engine.engine.policy_version + 1
    engine.finish_weight_update()


class ShowsAnother:
    """An environment that answers two turns with a picture each, and ends at the third."""

    def reset(self, prompt: Prompt) -> None:
        self.shown = 0

    def step(self, completion: Completion) -> Observation | Done:
        self.shown += 1
        if self.shown == 3:
            return Done()
        return Observation(text=f"look {self.shown}", images=PROMPTS[self.shown].images)


def end_turns_soon(engine: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each eighth token end a turn: a policy without any skill ends it with one token in 263."""
    params = engine.engine._sampling_params

    def ending_soon(sampling: Sampling, seed: int):
        found = params(sampling, seed)
        found.stop_token_ids = [*range(0, 256, 8)]
        return found

    monkeypatch.setattr(engine.engine, "_sampling_params", ending_soon)


def play(pair: Pair, prompts: Sequence[Prompt], sampling: Sampling, *, num_completions: int = 4) -> list[Group]:
    """Groups of episodes with the environment above."""
    engine, learner, _ = pair

    async def all_groups() -> list[Group]:
        queue = Dispatcher(None, [engine.engine], capacity=64, timeout=60.0, max_failures=0)
        episodes = Episodes(ShowsAnother, learner.processor, CONFIG, queue)
        seeds = [[100 * place + i for i in range(num_completions)] for place in range(len(prompts))]
        version = engine.engine.policy_version
        asked = zip(prompts, seeds, strict=True)
        try:
            return await asyncio.gather(*(episodes.group(prompt, sampling, its, version) for prompt, its in asked))
        finally:
            await queue.close()

    return engine.start(all_groups()).result(timeout=120)


def test_episodes_with_pictures_between_their_turns_agree_with_the_learner(pair, monkeypatch):
    end_turns_soon(pair[0], monkeypatch)
    groups = play(pair, PROMPTS[:4], Sampling(max_tokens=45))
    turns = [len(completion.turns) for group in groups for completion in group.completions]
    assert max(turns) == 3 and min(turns) < 3, "some have to be cut before their end"
    assert largest_gap(pair[1], groups) <= 1e-5


def sync_twice(
    pair: Pair, begin: Callable[[], Future[list[Group]]], clock: Sampling
) -> tuple[list[Group], dict[int, dict[str, torch.Tensor]]]:
    """Brings changed weights into the engine, twice, while it generates; returns its answers and the weights of each version.

    Before each it waits for an answer of the clock's length: what has begun before has as many tokens more.
    """
    engine, learner, sender = pair
    old = engine.engine.policy_version
    weights = {old: snapshot(learner)}
    for number, seed in enumerate((3, 4), 1):
        change_weights(learner, seed)
        weights[old + number] = snapshot(learner)
    begun = begin()
    for version in (old + 1, old + 2):
        engine.generate(PROMPTS[:1], clock, num_completions=1)
        assert not begun.done(), "too late for a sync in the middle of generation"
        learner.model.load_state_dict(weights[version])
        sender.send_weights(version)
    return begun.result(timeout=120), weights


def snapshot(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def gaps_by_version(learner, weights, groups) -> np.ndarray:
    """[versions, tokens] how far the log-probability of each token is from that under each version's weights; see `gaps_of`."""
    rows = []
    for its in weights.values():
        learner.model.load_state_dict(its)
        rows.append(np.concatenate([gaps for group in groups for gaps in gaps_of(learner, group)]))
    return np.stack(rows)


def test_completions_that_syncs_meet_go_on_and_each_token_names_the_version_that_sampled_it(pair):
    check_versions(pair, PROMPTS, Sampling(max_tokens=140), clock=Sampling(max_tokens=30))


def check_versions(pair: Pair, prompts: Sequence[Prompt], long: Sampling, clock: Sampling) -> list[Group]:
    """Two syncs come in the middle of answers, which it returns."""
    engine, learner, _ = pair
    groups, weights = sync_twice(pair, partial(engine.begin, prompts, long, num_completions=2), clock)
    completions = [completion for group in groups for completion in group.completions]
    named = np.concatenate([token_versions(completion) for completion in completions])
    assert set(named) == set(weights), "some version has sampled nothing"
    assert max(len(set(token_versions(completion))) for completion in completions) == 3
    gaps = gaps_by_version(learner, weights, groups)
    is_named = np.array(list(weights))[:, None] == named
    # Under the weights of the version that it names a token is exactly as likely as the engine said, under others it is not.
    assert np.nanmax(gaps[is_named]) <= 1e-5
    assert (gaps[~is_named & ~np.isnan(gaps)] > 1e-3).mean() > 0.95
    assert np.isnan(gaps).mean() < 0.05, "most tokens have to be compared"
    return groups


def test_with_requeue_completions_that_a_sync_meets_begin_anew_with_the_same_seeds_and_the_new_weights(pair):
    engine, learner, _ = pair
    engine.engine.config = replace(CONFIG, in_flight="requeue")
    sampling, seeds = Sampling(max_tokens=100), [11, 12]
    version = engine.engine.policy_version

    async def answers() -> list[Group]:
        queue = Dispatcher(None, [engine.engine], capacity=64, timeout=60.0, max_failures=0)
        try:
            return await asyncio.gather(
                *(queue.generate(call_of(prompt, sampling, seeds, version)) for prompt in PROMPTS)
            )
        finally:
            await queue.close()

    try:
        groups, weights = sync_twice(pair, lambda: engine.start(answers()), clock=Sampling(max_tokens=30))
    finally:
        engine.engine.config = CONFIG
    completions = [completion for group in groups for completion in group.completions]
    assert len(completions) == 2 * len(PROMPTS) and all(completion.token_versions is None for completion in completions)
    named = np.concatenate([token_versions(completion) for completion in completions])
    assert max(weights) in named, "no completion has begun anew"
    gaps = gaps_by_version(learner, weights, groups)
    assert np.nanmax(gaps[np.array(list(weights))[:, None] == named]) <= 1e-5
    assert np.isnan(gaps).mean() < 0.05, "most tokens have to be compared"
    last = [completion for completion in completions if completion.policy_version == max(weights)]
    again = [completion for group in engine.start(answers()).result(timeout=120) for completion in group.completions]
    assert {tuple(completion.token_ids) for completion in last} <= {tuple(completion.token_ids) for completion in again}


def test_requests_with_pictures_may_come_at_any_moment_of_a_sync(pair):
    # vLLM keeps processed pictures in two processes, which must forget them together: siblings send theirs only once.
    engine, learner, sender = pair
    version = engine.engine.policy_version

    async def answers() -> list[Group]:
        queue = Dispatcher(None, [engine.engine], capacity=16, timeout=60.0, max_failures=0)
        asked = [(prompt, [100 * place + i for i in range(8)]) for place, prompt in enumerate(4 * PROMPTS[1:7])]
        try:
            return await asyncio.gather(
                *(queue.generate(call_of(prompt, Sampling(max_tokens=24), seeds, version)) for prompt, seeds in asked)
            )
        finally:
            await queue.close()

    begun = engine.start(answers())
    while not begun.done():
        sender.send_weights(engine.engine.policy_version + 1)
        time.sleep(0.1)
    groups = begun.result()
    assert engine.engine.policy_version >= version + 3, "the syncs came too late"
    assert largest_gap(learner, groups) <= 1e-5


def test_a_request_past_its_deadline_is_cut_and_keeps_what_it_has_said(pair):
    engine, learner, _ = pair
    engine.engine.config = replace(CONFIG, request_timeout=0.5)
    try:
        [group] = engine.generate(PROMPTS[:1], Sampling(max_tokens=650), num_completions=16)
    finally:
        engine.engine.config = CONFIG
    cut = [completion for completion in group.completions if completion.finish_reason == "length"]
    assert cut, "all were done in time"
    assert all(0 < len(completion.token_ids) < 650 for completion in cut)
    assert largest_gap(learner, [group]) <= 1e-5
