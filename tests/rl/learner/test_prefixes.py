"""Common beginnings pass through the layers once: what the learner gets without it, token for token and update for update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from policies.inputs import VisionTokens
from rl.config import LoraConfig, TrainConfig
from rl.learner import Learner
from rl.learner.microbatches import plan_microbatches, split_ranks
from rl.learner.prefixes import common_beginnings
from rl.samples import Sample
from rollout.types import expert_dtype
from tests.learning import PROCESSOR, config, difference, learner_in_float64, rollout, watch_gradients

VISION = VisionTokens(image_id=9, video_id=8, merge_size=2)


def sample(tokens: list[int], prompt: str = "p", **fields) -> Sample:
    """A sample whose last token was sampled."""
    mask = np.arange(len(tokens)) == len(tokens) - 1
    return Sample(
        prompt_id=prompt,
        token_ids=np.array(tokens, np.int32),
        loss_mask=mask,
        rollout_logprobs=-mask.astype(np.float32),
        **({"advantage": 1.0, "images": []} | fields),
    )


def shared_by(*samples: Sample) -> list[int]:
    return common_beginnings(samples, VISION)


def test_a_family_shares_what_all_of_it_has_and_each_keeps_a_token_of_its_own():
    first, second, third = sample([1, 2, 3, 4]), sample([1, 2, 3, 5, 6]), sample([1, 2, 7])
    assert shared_by(first, second, third) == [0, 2, 2]
    assert shared_by(first, first, first) == [0, 3, 3]
    assert shared_by(sample([1]), sample([1])) == [0, 0]
    assert shared_by(first) == [0]
    assert shared_by() == []


def test_another_prompt_or_another_beginning_begins_a_family():
    first, second = sample([1, 2, 3, 4]), sample([1, 2, 3, 5])
    assert shared_by(first, second, sample([1, 2, 3, 6], "q"), sample([1, 2, 3, 7], "q")) == [0, 3, 0, 3]
    assert shared_by(first, sample([5, 2, 3, 5]), sample([5, 2, 3, 6])) == [0, 0, 3]
    # Two tokens are less than half of five: to share no more than they do would cost the others more.
    long = [1, 2, 3, 4, 5]
    assert shared_by(sample([*long, 6]), sample([*long, 7]), sample([1, 2, 8]), sample([1, 2, 9, 9])) == [0, 5, 0, 2]


def test_equal_tokens_of_different_pictures_are_not_shared():
    one, two = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2))
    tokens = [1, 9, 9, 2, 9, 9, 3, 4]
    first, second = sample(tokens, images=[one, one]), sample(tokens, images=[one, two])
    assert shared_by(first, first) == [0, 7]
    assert shared_by(first, second) == [0, 4]  # up to the second picture
    assert shared_by(first, sample(tokens, images=[two, one])) == [0, 1]
    clips = [1, 8, 2, 8, 3]
    assert shared_by(sample(clips, videos=[one]), sample(clips, videos=[two])) == [0, 1]
    assert shared_by(sample(clips, videos=[one]), sample(clips, videos=[one])) == [0, 4]


def test_tokens_with_different_experts_to_replay_are_not_shared():
    prompt, other, ours, theirs = np.zeros((4, 3, 1, 1))
    tokens = [1, 2, 3, 4, 5, 6]
    whole = sample(tokens, routed_experts=[(0, prompt), (3, ours)])
    assert shared_by(whole, sample(tokens, routed_experts=[(0, prompt), (3, theirs)])) == [0, 3]
    assert shared_by(whole, sample(tokens, routed_experts=[(0, other), (3, theirs)])) == [0, 0]
    # A sibling of other weights: the experts of its prompt are unknown.
    unknown = sample(tokens, routed_experts=[(3, theirs)])
    assert shared_by(whole, unknown) == [0, 0]
    assert shared_by(unknown, unknown) == [0, 5]


def test_what_is_shared_counts_once_and_again_in_another_microbatch():
    # Prompt of 10, responses of 2: 12 + 2 + 2 = 16 fill the first, and the last two begin with the prompt again.
    lengths, shared = [12] * 5, [0, 10, 10, 10, 10]
    assert plan_microbatches(lengths, 16, packed=True, shared=shared) == [[0, 1, 2], [3, 4]]
    assert plan_microbatches(lengths, 16, packed=True) == [[0], [1], [2], [3], [4]]
    # A later sequence of one token fills what is left; siblings stay together.
    assert plan_microbatches([12, 12, 14, 4], 18, packed=True, shared=[0, 10, 0, 0]) == [[0, 1, 3], [2]]


def test_ranks_get_equal_shares_of_what_they_compute_and_groups_stay_together():
    # Two groups of 3, prompts of 10: 11 + 1 + 1 = 13 tokens each, though the second begins at token 33 of 63.
    group = [sample([*range(20, 30), k], name) for name in "ab" for k in range(3)]
    shared = shared_by(*group)
    assert shared == [0, 10, 10, 0, 10, 10]
    assert [[s.prompt_id for s in share] for share in split_ranks(group, 2, shared)] == [["a"] * 3, ["b"] * 3]
    # One long group is cut, where the repeated prompt costs less than waiting.
    long = [sample([1, *[k] * 30]) for k in range(4)]
    assert [len(share) for share in split_ranks(long, 2, shared_by(*long))] == [2, 2]


CONTENTS = {
    "images": rollout(),
    "text": rollout(with_images=False),
    "videos": rollout(with_videos=True, num_groups=2) + rollout(with_images=False, num_groups=1, seed=1),
    "groups of one": [group[:1] for group in rollout()],
    "an empty group": [rollout()[0], [], *rollout()[1:]],
}
"""Responses of one to eight tokens."""
LONGEST = max(len(each.token_ids) for group in rollout() for each in group)


def options(share: bool, num_minibatches: int = 1, **learner) -> TrainConfig:
    # The second update of a step must not depend on how the first one was rounded.
    made = config(num_minibatches=num_minibatches, max_grad_norm=1e9, learning_rate=1e-6)
    return replace(made, learner=replace(made.learner, share_prefixes=share, **learner))


def both(make: Callable[[bool], Learner], groups: list[list[Sample]]) -> list[tuple[Tensor, Tensor, int]]:
    """With shared beginnings and without: log-probabilities, the first update's gradient, tokens in all layers."""
    found = []
    for share in (True, False):
        learner = make(share)
        batches = learner.make_microbatches([each for group in groups for each in group])
        logprobs = torch.cat(
            [each[batch.mask_BT] for batch, each in zip(batches, learner.old_logprobs(batches), strict=True)]
        )
        gradients = watch_gradients(learner)
        learner.step(groups)
        found.append((logprobs, gradients[0], sum(len(batch.row.tokens_S) for batch in batches)))
    return found


@pytest.mark.parametrize("content", CONTENTS)
def test_shared_equals_unshared(policy: Path, content: str):
    groups = CONTENTS[content]
    ours, theirs = both(lambda share: learner_in_float64(options(share), policy), groups)
    assert (ours[0] - theirs[0]).abs().max() <= 1e-6  # logits are float32
    assert difference(ours[1], theirs[1]) <= 3e-7
    if content == "groups of one":
        assert ours[2] == theirs[2]
    else:  # prompts come once instead of three times
        assert ours[2] < 0.6 * theirs[2]


def test_shared_equals_unshared_in_float32(policy: Path):
    ours, theirs = both(lambda share: Learner(options(share), policy), rollout())
    assert (ours[0] - theirs[0]).abs().max() <= 1e-5
    assert difference(ours[1], theirs[1]) <= 3e-6


@pytest.mark.parametrize(
    "learner",
    [
        {"gradient_checkpointing": True},
        {"microbatch_tokens": LONGEST},  # less than a group has
        {"routing_replay": "R2"},
    ],
    ids=["checkpointing", "small microbatches", "R2"],
)
def test_an_option_changes_nothing_about_it(moe_policy: Path, learner: dict):
    found = []
    for share in (True, False):
        made = learner_in_float64(options(share, num_minibatches=2, **learner), moe_policy)
        gradients = watch_gradients(made)
        metrics = made.step(rollout()).metrics
        found.append(torch.cat(gradients))
        if "microbatch_tokens" in learner:
            assert len(made.make_microbatches(rollout()[3])) > 1
        if "routing_replay" in learner:
            assert metrics["policy/routing_agreement"] > 0.9
    assert difference(*found) <= 3e-7


def test_lora_and_its_reference_change_nothing_about_it(policy: Path):
    found = []
    for share in (True, False):
        made = replace(options(share), model=str(policy), kl_coefficient=0.1, lora=LoraConfig(rank=4))
        learner = learner_in_float64(made, policy)
        gradients = watch_gradients(learner)
        learner.step(rollout())
        learner.step(rollout())
        found.append(torch.cat(gradients))
    assert difference(*found) <= 1e-6


def test_each_sequence_counts_its_prompt_in_the_balance_of_experts(moe_policy: Path):
    made = [replace(options(share), balance_coefficient=0.3) for share in (True, False)]
    imbalances = [learner_in_float64(each, moe_policy).step(rollout()).metrics for each in made]
    ours, theirs = (metrics["policy/expert_imbalance"] for metrics in imbalances)
    assert ours == pytest.approx(theirs, rel=1e-6) and ours > 1


def test_the_engines_experts_of_a_prompt_are_replayed_for_all_that_share_it(moe_policy: Path):
    learner = Learner(options(True), moe_policy)
    router = learner.routing.routers[0]
    rng = np.random.default_rng(0)
    dtype = expert_dtype(router.num_experts)

    def experts(num_tokens: int) -> np.ndarray:
        shape = (num_tokens, len(learner.routing.routers))
        return (
            np.stack([rng.permuted(np.arange(router.num_experts))[: router.top_k] for _ in range(np.prod(shape))])
            .reshape(*shape, router.top_k)
            .astype(dtype)
        )

    groups = []
    for group in rollout():
        num_prompt = int(np.argmax(group[0].loss_mask))
        prompt = experts(num_prompt)
        groups.append(
            [
                replace(each, routed_experts=[(0, prompt), (num_prompt, experts(len(each.token_ids) - num_prompt))])
                for each in group
            ]
        )
    ours, theirs = both(lambda share: learner_in_float64(options(share, routing_replay="R3"), moe_policy), groups)
    assert (ours[0] - theirs[0]).abs().max() <= 1e-6
    assert difference(ours[1], theirs[1]) <= 3e-7
    assert ours[2] < 0.6 * theirs[2]


def test_episodes_share_their_turns_up_to_the_first_difference(policy: Path):
    """Two samples of an episode's kind: the same picture, a turn, then different observed pictures, or none."""
    [[first, *_]] = rollout(num_groups=1)
    seen = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    start, pad, end = (
        PROCESSOR.tokenizer.convert_tokens_to_ids(name)
        for name in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    )

    def episode(observed: list[Image.Image], said: list[int]) -> Sample:
        turns = [5, 6, 7] + [start, pad, end] * len(observed) + said
        tokens = np.concatenate([first.token_ids[: int(np.argmax(first.loss_mask))], turns]).astype(np.int32)
        mask = np.zeros(len(tokens), bool)
        mask[len(tokens) - len(turns) :][:3] = mask[-len(said) :] = True
        return replace(
            first,
            token_ids=tokens,
            loss_mask=mask,
            rollout_logprobs=-mask.astype(np.float32),
            images=[*first.images, *observed],
            advantage=float(len(said) - 2),
        )

    group = [episode(seen[:1], [1, 2, 3]), episode(seen[1:], [1, 2, 3]), episode(seen[:1], [4]), episode([], [1, 2])]
    ours, theirs = both(lambda share: learner_in_float64(options(share), policy), [group])
    assert (ours[0] - theirs[0]).abs().max() <= 1e-6
    assert difference(ours[1], theirs[1]) <= 3e-7
    assert ours[2] < 0.6 * theirs[2]
