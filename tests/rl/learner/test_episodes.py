"""What the learner makes of an episode: the policy's own words are learnt, what it was shown is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.small.qwen3_vl import TOKEN_IDS, save_small_policy
from rewards import Score
from rl.learner import Learner
from rl.samples import Sample, make_samples
from rl.sapo import sapo_loss
from rollout.rendering import expand_media, observation_tokens, render
from rollout.types import Completion, Group, Observation, Prompt, Turn
from tests.learning import PROCESSOR, config, make_group

END = TOKEN_IDS["<|im_end|>"]


def episodes(observed: str = "hm", policy_versions: tuple[int, int] = (0, 0)) -> Group:
    """Two episodes of the turns "ab" and "c" and one with a picture shown between them; 5 sampled tokens each."""
    prompt = make_group(np.random.default_rng(0), 0, with_images=True).prompt
    shown = Observation(text=observed, images=make_group(np.random.default_rng(1), 1, with_images=True).prompt.images)
    between = expand(observation_tokens(PROCESSOR, shown), shown)
    tokens = np.array([*b"ab", END, *between, *b"c", END], np.int32)
    turns = [
        Turn(text="ab", start=0, stop=3, observation=shown),
        Turn(text="c", start=len(tokens) - 2, stop=len(tokens)),
    ]
    versions = np.full(len(tokens), policy_versions[0], np.int32)
    versions[-2:] = policy_versions[1]
    completion = Completion(
        text="c",
        token_ids=tokens,
        logprobs=np.where((np.arange(len(tokens)) < 3) | (np.arange(len(tokens)) >= len(tokens) - 2), -5.0, 0.0),
        policy_version=policy_versions[0],
        token_versions=versions,
        turns=turns,
    )
    return Group(
        prompt=prompt,
        prompt_token_ids=expand(render(PROCESSOR, prompt), prompt),
        completions=[completion, replace(completion, text="c")],
    )


def expand(tokens: list[int], shows: Prompt | Observation) -> np.ndarray:
    return expand_media(PROCESSOR, tokens, shows.images, ())


def samples_of(group: Group, policy_version: int | None = None) -> list[list[Sample]]:
    return make_samples([group], [[Score(reward=1.0), Score(reward=0.0)]], "group_std", policy_version)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_small_policy(tmp_path_factory.mktemp("policy"), kind="dense", seed=0)


def test_the_gradient_on_policy_is_minus_advantage_over_the_sampled_tokens_and_zero_at_what_was_shown(folder):
    # Rewards 1 and 0: advantages 1 and −1. Each sequence counts half, each of its five sampled tokens a fifth of that.
    group = episodes()
    seen = []

    def watched(logprobs_BT, *rest, num_sequences=None):
        if logprobs_BT.requires_grad:
            logprobs_BT.register_hook(seen.append)
        return sapo_loss(logprobs_BT, *rest, num_sequences=num_sequences)

    learner = Learner(config(packing=False), folder, watched)
    learner.step(samples_of(group))
    gradient_BT, _ = seen  # the other is that of the weights on-policy
    num_prompt, num_tokens = len(group.prompt_token_ids), len(group.completions[0].token_ids)
    expected_T = np.zeros(num_tokens)
    expected_T[[0, 1, 2, -2, -1]] = 0.5 / 5
    # Position t predicts token t + 1: the response's first token is predicted by the prompt's last.
    ours_BT = gradient_BT[:, num_prompt - 1 :].numpy()
    np.testing.assert_allclose(ours_BT, [-expected_T, expected_T], atol=1e-6)
    assert not gradient_BT[:, : num_prompt - 1].any()


def test_what_was_shown_is_read_and_changes_what_follows(folder):
    learner = Learner(config(packing=False), folder)
    logprobs = []
    for observed in ("hm", "no"):
        (batch,) = learner.make_microbatches(samples_of(episodes(observed))[0])
        logprobs.append(learner.old_logprobs([batch])[0][0][batch.mask_BT[0]])
    before, after = (torch.stack(logprobs)[:, :3], torch.stack(logprobs)[:, 3:])
    torch.testing.assert_close(before[0], before[1])
    assert (after[0] - after[1]).abs().min() > 1e-5


def test_siblings_pictures_of_the_prompt_are_the_same_objects_and_what_each_was_shown_comes_behind():
    group = episodes()
    (first, second), shown = samples_of(group)[0], group.completions[0].turns[0].observation
    assert [id(image) for image in first.images] == [id(image) for image in [*group.prompt.images, *shown.images]]
    assert first.images[0] is second.images[0]


def test_only_sampled_tokens_are_stale():
    # The first turn is of version 3, the second of 4, which the learner has: three tokens are stale, nothing between is.
    sample = samples_of(episodes(policy_versions=(3, 4)), policy_version=4)[0][0]
    num_prompt = len(episodes().prompt_token_ids)
    assert np.flatnonzero(sample.stale_mask).tolist() == [num_prompt, num_prompt + 1, num_prompt + 2]
    assert sample.loss_mask.sum() == 5


def test_an_episode_that_broke_off_is_not_learnt_from():
    group = episodes()
    broken = replace(group, completions=[replace(group.completions[0], error="the tool failed"), group.completions[1]])
    scores = [[Score(reward=0.0, error="the tool failed"), Score(reward=0.0)]]
    assert len(make_samples([broken], scores)[0]) == 1
