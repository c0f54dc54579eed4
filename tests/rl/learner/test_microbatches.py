"""Groups → samples → minibatches → microbatches: nothing is lost, nothing is doubled, siblings share their images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.inputs import EncodedMedia, VisionTokens
from rewards.types import Score
from rl.learner.microbatches import encode_media, make_microbatch, plan_microbatches, split_minibatches
from rl.samples import Sample, make_samples
from rollout.engine.outputs import split_experts
from rollout.types import Completion, Group, Prompt

IMAGE, VIDEO = 9, 8
"""The placeholders of these tests."""
VISION = VisionTokens(image_id=IMAGE, video_id=VIDEO, merge_size=2)


def sample(
    token_ids: list[int], num_prompt: int, *, advantage: float = 0.0, images: object = (), name: str = "p"
) -> Sample:
    return Sample(
        prompt_id=name,
        token_ids=np.array(token_ids, np.int32),
        loss_mask=np.arange(len(token_ids)) >= num_prompt,
        rollout_logprobs=-np.arange(len(token_ids), dtype=np.float32) * (np.arange(len(token_ids)) >= num_prompt),
        advantage=advantage,
        images=images,
    )


def completion(*token_ids: int, version: int = 3) -> Completion:
    logprobs = np.array([-0.5 * token for token in token_ids], np.float32)
    return Completion(text="", token_ids=np.array(token_ids, np.int32), logprobs=logprobs, policy_version=version)


def test_a_sample_is_prompt_and_response_with_the_response_marked():
    prompt = Prompt(id="q", messages=[], images=["picture"])
    group = Group(
        prompt=prompt,
        prompt_token_ids=np.array([5, 6, 7], np.int32),
        completions=[completion(1, 2), completion(4, version=2)],
    )
    [[first, second]] = make_samples([group], [[Score(reward=1.0), Score(reward=0.0)]])
    assert first.token_ids.tolist() == [5, 6, 7, 1, 2]
    assert first.loss_mask.tolist() == [False, False, False, True, True]
    assert first.rollout_logprobs.tolist() == [0.0, 0.0, 0.0, -0.5, -1.0]
    assert (first.advantage, second.advantage) == (1.0, -1.0)
    assert first.stale_mask is None and second.stale_mask is None
    assert first.images[0] is second.images[0] is prompt.images[0]
    assert (first.prompt_id, first.token_ids.dtype, first.rollout_logprobs.dtype) == ("q", np.int32, np.float32)


def test_completions_whose_verifier_failed_are_left_out_and_do_not_count():
    group = Group(
        prompt=Prompt(id="q", messages=[]),
        prompt_token_ids=np.array([5], np.int32),
        completions=[completion(1), completion(2), completion(3)],
    )
    scores = [Score(reward=1.0), Score(reward=0.0, error="broken"), Score(reward=0.0)]
    [samples] = make_samples([group], [scores])
    assert [(s.token_ids[-1], s.advantage) for s in samples] == [(1, 1.0), (3, -1.0)]


def test_scores_that_do_not_match_the_completions_are_refused():
    group = Group(
        prompt=Prompt(id="q", messages=[]), prompt_token_ids=np.zeros(1, np.int32), completions=[completion(1)]
    )
    with pytest.raises(ValueError):
        make_samples([group], [[Score(reward=1.0), Score(reward=0.0)]])


@given(st.lists(st.integers(0, 4), max_size=20), st.integers(1, 8))
def test_minibatches_hold_every_sample_once_in_order_and_keep_siblings_together(sizes: list[int], num_minibatches: int):
    groups = [[sample([1, 2], 1, name=f"{g}") for _ in range(size)] for g, size in enumerate(sizes)]
    shares = split_minibatches(groups, num_minibatches)
    assert [id(s) for share in shares for s in share] == [id(s) for group in groups for s in group]
    assert all(shares)
    assert len(shares) <= num_minibatches
    homes = [{s.prompt_id for s in share} for share in shares]
    assert sum(map(len, homes)) == sum(size > 0 for size in sizes)


@given(st.integers(1, 20), st.integers(1, 8))
def test_minibatches_differ_by_at_most_one_group(num_groups: int, num_minibatches: int):
    shares = split_minibatches([[sample([1, 2], 1)] for _ in range(num_groups)], num_minibatches)
    assert len(shares) == min(num_groups, num_minibatches)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_sixteen_groups_make_two_minibatches_of_eight():
    groups = [[sample([1, 2], 1, name=f"{g}")] * 4 for g in range(16)]
    first, second = split_minibatches(groups, 2)
    assert [s.prompt_id for s in first[::4]] == [f"{g}" for g in range(8)]
    assert len(first) == len(second) == 32


def test_microbatches_take_the_longest_first_and_count_padding():
    # 10·1; 8 and 7 as 2·8 = 16 ≤ 20, a third would make 24; 5, 3 and 2 as 3·5 = 15
    assert plan_microbatches([5, 10, 3, 8, 7, 2], 20) == [[1, 3], [4, 0], [2, 5]]
    assert plan_microbatches([5, 10, 3, 8, 7, 2], 16) == [[1], [3, 4], [0, 2, 5]]
    assert plan_microbatches([4, 4, 4], 8) == [[0, 1], [2]]
    assert plan_microbatches([], 8) == []


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 400))
def test_every_sequence_is_in_one_microbatch_and_none_exceeds_the_budget(lengths: list[int], budget: int):
    plan = plan_microbatches(lengths, budget)
    assert sorted(index for part in plan for index in part) == list(range(len(lengths)))
    assert all(len(part) * max(lengths[index] for index in part) <= budget for part in plan)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 400))
def test_a_microbatch_is_closed_only_when_one_more_would_not_fit(lengths: list[int], budget: int):
    plan = plan_microbatches(lengths, budget)
    assert all((len(part) + 1) * lengths[part[0]] > budget for part in plan[:-1])


def test_sequence_over_the_budget_is_named_with_the_remedy():
    with pytest.raises(
        ValueError, match="a sequence of 51 tokens does not fit a microbatch of 50: raise learner.microbatch_"
    ):
        plan_microbatches([3, 51], 50)


def test_microbatch_of_text_is_worked_by_hand():
    long = sample([1, 2, 3, 4], 2, advantage=1.5, name="long")
    short = sample([5, 6, 7], 2, advantage=-0.5, name="short")
    batch = make_microbatch([long, short], {}, VISION)
    assert batch.tokens_BL.tolist() == [[1, 2, 3, 4], [5, 6, 7, 0]]
    assert batch.positions_3BL.tolist() == [[[0, 1, 2, 3], [0, 1, 2, 0]]] * 3
    assert batch.mask_BT.tolist() == [
        [False, True, True],
        [False, True, False],
    ]  # at t: is token t + 1 of the response?
    assert batch.rollout_logprobs_BT.tolist() == [[0, -2, -3], [0, -2, 0]]
    assert batch.advantages_B.tolist() == [1.5, -0.5]
    assert batch.prompt_ids == ["long", "short"]
    assert batch.vision is None
    assert (batch.tokens_BL.dtype, batch.mask_BT.dtype, batch.advantages_B.dtype) == (
        torch.int64,
        torch.bool,
        torch.float32,
    )


def test_microbatch_with_images_shows_each_picture_once():
    # A picture of 2·4 patches is 1·2 tokens: positions 1..2 from where it starts, and the text goes on at 1 + 2.
    wide = EncodedMedia(pixels=torch.full((8, 3), 1.0), grid=(1, 2, 4))
    tall = EncodedMedia(pixels=torch.full((8, 3), 2.0), grid=(1, 4, 2))
    ours, theirs = object(), object()
    samples = [
        sample([1, IMAGE, IMAGE, 2, 3], 4, images=[ours]),
        sample([1, IMAGE, IMAGE, 2, 3], 4, images=[theirs]),
        sample([1, IMAGE, IMAGE, 2, 4, 5], 4, images=[ours]),
        sample([1, 2], 1),
    ]
    batch = make_microbatch(samples, {id(ours): wide, id(theirs): tall}, VISION)
    assert batch.vision.pixels[:, 0].tolist() == [1.0] * 8 + [2.0] * 8
    assert batch.vision.grid_U3.tolist() == [[1, 2, 4], [1, 4, 2]]
    assert batch.vision.image_order_N.tolist() == [0, 1, 0]
    time, height, width = batch.positions_3BL.tolist()
    assert (time[0], height[0], width[0]) == ([0, 1, 1, 3, 4, 0], [0, 1, 1, 3, 4, 0], [0, 1, 2, 3, 4, 0])
    assert (time[1], height[1], width[1]) == ([0, 1, 1, 3, 4, 0], [0, 1, 2, 3, 4, 0], [0, 1, 1, 3, 4, 0])
    assert batch.mask_BT.int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1], [1, 0, 0, 0, 0]]


def test_siblings_show_the_prompts_picture_and_their_own_and_each_is_encoded_once():
    # What tools returned stands in the response: here each sibling looked at another part of the same picture.
    whole, left, right = (EncodedMedia(pixels=torch.full((4, 3), n), grid=(1, 2, 2)) for n in (1.0, 2.0, 3.0))
    prompts, tools = object(), [object(), object()]
    first = sample([1, IMAGE, 2, 3, IMAGE, 4], 3, images=[prompts, tools[0]])
    second = sample([1, IMAGE, 2, 5, IMAGE, 6], 3, images=[prompts, tools[1]])
    encoded = {id(prompts): whole, id(tools[0]): left, id(tools[1]): right}
    batch = make_microbatch([first, second], encoded, VISION)
    assert batch.vision.pixels[::4, 0].tolist() == [1.0, 2.0, 3.0]
    assert batch.vision.image_order_N.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("rests", "shared", "own"),
    [
        ([[4], [5, 6, 7], [3]], 4, [0, 0, 0]),  # text: it goes on from the picture, which takes positions 1 and 2
        ([[4], [5, IMAGE, 7], [6, 6]], 4, [0, 1, 0]),  # a picture of its own, between siblings of text
        ([[IMAGE, 4], [IMAGE, 5], [IMAGE, 6, 6]], 4, [1, 1, 1]),
        ([[4], [5], [6, 6]], 2, [0, 0, 0]),  # what is shared ends inside the picture
    ],
)
def test_siblings_have_the_positions_that_they_have_alone(rests: list[list[int]], shared: int, own: list[int]):
    # A picture of 2·4 patches is two tokens, of 2·2 patches one.
    prompts, tool = object(), object()
    encoded = {
        id(prompts): EncodedMedia(pixels=torch.zeros(8, 3), grid=(1, 2, 4)),
        id(tool): EncodedMedia(pixels=torch.zeros(4, 3), grid=(1, 2, 2)),
    }
    siblings = [
        sample([1, IMAGE, IMAGE, 2, *rest], 4, images=[prompts, *[tool] * count])
        for rest, count in zip(rests, own, strict=True)
    ]
    together = make_microbatch(siblings, encoded, VISION, packed=True, shared=[0, shared, shared]).positions_3BL
    for row, each in enumerate(siblings):
        alone = make_microbatch([each], encoded, VISION).positions_3BL[:, 0]
        assert torch.equal(together[:, row, : len(each.token_ids)], alone)


def test_a_video_is_joined_with_images_and_shown_by_its_own_placeholders():
    # Two steps in time of 2·2 patches are a token each, with text between; the image is one token.
    video = EncodedMedia(pixels=torch.full((8, 3), 1.0), grid=(2, 2, 2), is_video=True)
    image = EncodedMedia(pixels=torch.full((4, 3), 2.0), grid=(1, 2, 2))
    clip, picture = object(), object()
    both = replace(sample([VIDEO, 1, VIDEO, IMAGE, 2], 4, images=[picture]), videos=[clip])
    alone = replace(sample([1, VIDEO, 2, VIDEO, 3], 4), videos=[clip])
    batch = make_microbatch([both, alone], {id(clip): video, id(picture): image}, VISION)
    assert batch.vision.grid_U3.tolist() == [[1, 2, 2], [2, 2, 2]]
    assert batch.vision.image_order_N.tolist() == [0]
    assert batch.vision.video_order_M.tolist() == [1, 1]
    assert batch.positions_3BL[:, 0].tolist() == [[0, 1, 2, 3, 4]] * 3


class CountingProcessor:
    """Tells how often each picture was encoded."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def image_processor(self, images, return_tensors):
        self.seen += images
        return {
            "pixel_values": torch.zeros(4 * len(images), 3),
            "image_grid_thw": torch.tensor([[1, 2, 2]] * len(images)),
        }


def test_pictures_that_several_samples_show_are_encoded_once():
    processor, pictures = CountingProcessor(), [object(), object()]
    samples = [sample([1], 0, images=images) for images in (pictures, pictures[:1], pictures[1:], ())]
    assert encode_media(processor, samples).keys() == {id(picture) for picture in pictures}
    assert processor.seen == pictures


def test_packed_sequences_stay_in_order_and_need_no_room_for_padding():
    assert plan_microbatches([5, 10, 3, 8, 7, 2], 20, packed=True) == [[0, 1, 2, 5], [3, 4]]
    assert plan_microbatches([5, 10, 3, 8, 7, 2], 10, packed=True) == [[0, 2, 5], [1], [3], [4]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 400))
def test_packed_microbatches_hold_every_sequence_once_within_the_budget_and_no_two_would_fit_in_one(
    lengths: list[int], budget: int
):
    plan = plan_microbatches(lengths, budget, packed=True)
    assert sorted(index for part in plan for index in part) == list(range(len(lengths)))
    totals = [sum(lengths[index] for index in part) for part in plan]
    assert all(total <= budget for total in totals)
    assert all(a + lengths[part[0]] > budget for a, part in zip(totals, plan[1:], strict=False))


def test_experts_of_tokens_that_a_sync_has_had_computed_anew_are_unknown():
    # Two tokens of the response are of version 4, and two of version 5: the choices of 4 no longer stand behind any probability.
    prompt, response = split_experts(np.arange(5).reshape(5, 1, 1), 2, np.array([4, 4, 5, 5]), 256)
    assert prompt[:, 0, 0].tolist() == [-1, -1]
    assert response[:, 0, 0].tolist() == [-1, -1, 4, -1]


@pytest.mark.parametrize(
    ("num_experts", "dtype", "unknown"), [(8, "uint8", 255), (255, "uint8", 255), (256, "int16", -1)]
)
def test_an_expert_takes_one_byte_where_that_also_has_a_number_for_an_unknown_one(
    num_experts: int, dtype: str, unknown: int
):
    routed = np.full((3, 2, 1), num_experts - 1, np.uint8)  # as vLLM returns up to 256 experts
    prompt, response = split_experts(routed, 2, np.zeros(2, int), num_experts)
    assert (prompt.dtype, response.dtype) == (dtype, dtype)
    assert prompt[:, 0, 0].tolist() == [num_experts - 1] * 2
    assert response[:, 0, 0].tolist() == [num_experts - 1, unknown]


@pytest.mark.parametrize(("num_experts", "unknown"), [(10, 255), (300, -1)])
def test_experts_of_prompt_and_response_are_laid_beside_their_tokens(num_experts: int, unknown: int):
    told = split_experts(np.arange(5 * 2 * 1).reshape(5, 2, 1), 3, np.zeros(3, int), num_experts)
    assert [experts[:, 0, 0].tolist() for experts in told] == [[0, 2, 4], [6, 8, unknown]]
    with pytest.raises(RuntimeError, match=r"of 5 tokens, expected 3 \+ 2 - 1"):
        split_experts(np.zeros((5, 2, 1)), 3, np.zeros(2, int), num_experts)
    assert split_experts(None, 3, np.zeros(3, int), num_experts) == (None, None)

    completions = [
        Completion(text="", token_ids=np.zeros(n, np.int32), logprobs=np.zeros(n, np.float32), routed_experts=experts)
        for n, experts in ((3, told[1]), (2, None))
    ]
    prompt = Prompt(id="p", messages=[])
    group = Group(prompt=prompt, prompt_token_ids=np.arange(3), completions=completions, prompt_routed_experts=told[0])
    [samples] = make_samples([group], [[Score(reward=1.0), Score(reward=0.0)]])
    batch = make_microbatch(samples, {}, VISION)
    assert batch.experts_BLKk.shape == (2, 6, 2, 1)
    assert batch.experts_BLKk.element_size() == (1 if unknown == 255 else 2)
    assert batch.experts_BLKk[0, :, 0, 0].tolist() == [0, 2, 4, 6, 8, unknown]
    assert (batch.experts_BLKk[1] == unknown).all()
    [alone, _] = make_samples([replace(group, prompt_routed_experts=None)], [[Score(reward=1.0), Score(reward=0.0)]])[0]
    batch = make_microbatch([alone], {}, VISION)
    assert batch.experts_BLKk[0, :, 0, 0].tolist() == [unknown] * 3 + [6, 8, unknown] and batch.num_lost == 0


def test_a_prompts_experts_are_unknown_to_siblings_that_other_weights_have_sampled():
    # The group has the prompt's experts of its first completion, of version 4. A sync came before the second and in the third.
    chosen = np.array([6, 7])[:, None, None]
    versions = ((4, None), (5, None), (4, np.array([4, 5])), (4, None))
    completions = [
        Completion(
            text="",
            token_ids=np.zeros(2, np.int32),
            logprobs=np.zeros(2, np.float32),
            policy_version=first,
            token_versions=each,
            routed_experts=chosen,
        )
        for first, each in versions
    ]
    prompt = Prompt(id="p", messages=[])
    group = Group(
        prompt=prompt, prompt_token_ids=np.arange(1), completions=completions, prompt_routed_experts=np.array([[[3]]])
    )
    [samples] = make_samples([group], [[Score(reward=0.0)] * 4])
    batch = make_microbatch(samples, {}, VISION)
    assert batch.experts_BLKk[:, :, 0, 0].tolist() == [[3, 6, 7], [-1, 6, 7], [-1, 6, 7], [3, 6, 7]]
