"""Sequences without padding: what the padded batch gives, token for token."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.inputs import hidden_states
from policies.loading import load_policy
from policies.packing import Row, packed_attention, packed_row, plan_calls, real_tokens, use_packed_attention
from rl.learner import Learner
from rl.learner.microbatches import Microbatch
from rl.samples import Sample
from tests.learning import config, difference, learner_in_float64, parameters, rollout, watch_gradients

CONTENTS = {
    "images": rollout(),
    "text": rollout(with_images=False),
    "mixed": rollout(num_groups=2) + rollout(with_images=False, num_groups=2, seed=1),
    "videos": rollout(with_videos=True, num_groups=2) + rollout(with_images=False, num_groups=1, seed=1),
}


def by_tokens(batches: list[Microbatch], logprobs: list[Tensor]) -> dict[tuple[int, ...], Tensor]:
    """Each response's log-probabilities, by the tokens of its sequence."""
    return {
        tuple(batch.tokens_BL[row, : batch.lengths_B[row]].tolist()): its_BT[row][batch.mask_BT[row]]
        for batch, its_BT in zip(batches, logprobs, strict=True)
        for row in range(len(its_BT))
    }


@pytest.mark.parametrize("content", CONTENTS)
def test_packed_equals_padded(policy: Path, content: str):
    samples: list[Sample] = [sample for group in CONTENTS[content] for sample in group]
    if content == "images":
        assert max(len(sample.images) for sample in samples) == 2
    found = []
    for packing in (True, False):
        learner = Learner(config(packing=packing), policy)
        batches = learner.make_microbatches(samples)
        [batch] = batches
        assert len(set(batch.lengths_B.tolist())) > 4  # there is padding to leave out
        found.append(by_tokens(batches, learner.old_logprobs(batches)))
    packed, padded = found
    assert packed.keys() == padded.keys()
    for tokens, logprobs_N in padded.items():
        assert (packed[tokens] - logprobs_N).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("content", CONTENTS)
def test_gradients_are_those_of_the_padded_batch(policy: Path, content: str):
    found = []
    for packing in (True, False):
        learner = learner_in_float64(config(packing=packing, max_grad_norm=1e9), policy)
        gradients = watch_gradients(learner)
        learner.step(CONTENTS[content])
        found += gradients
    assert difference(*found) <= 1e-7


def test_checkpointing_computes_the_same_gradients_from_packed_sequences(moe_policy: Path):
    found = []
    for checkpointing in (True, False):
        options = config(num_minibatches=2)
        options = replace(options, learner=replace(options.learner, gradient_checkpointing=checkpointing))
        learner = Learner(options, moe_policy)
        gradients = watch_gradients(learner)
        learner.step(CONTENTS["mixed"])
        found.append(gradients)
    for ours, theirs in zip(*found, strict=True):
        assert difference(ours, theirs) <= 1e-6


def test_no_sequence_sees_its_neighbour(policy: Path):
    model = load_policy(policy, dtype=torch.float32, device="cpu")
    use_packed_attention(model)
    tokens_BL = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    positions_3BL = torch.arange(9).expand(3, 3, 9)
    row = packed_row([9, 1, 4])
    with torch.no_grad():
        before = hidden_states(model, tokens_BL, positions_3BL, None, row)
        changed_BL = tokens_BL.clone()
        changed_BL[0] = (changed_BL[0] + 1) % 256
        changed_BL[2] = (changed_BL[2] + 1) % 256
        after = hidden_states(model, changed_BL, positions_3BL, None, row)
        alone = hidden_states(model, tokens_BL[1:2, :1], positions_3BL[:, :1, :1], None, packed_row([1]))
    assert before.shape[0] == 14
    assert (before[:9] != after[:9]).any() and (before[10:] != after[10:]).any()
    torch.testing.assert_close(after[9], before[9], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone[0], before[9], rtol=0, atol=1e-5)


def attention(query: Tensor, key: Tensor, value: Tensor, row: Row, scaling: float = 1.0) -> Tensor:
    output, weights = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=scaling, row=row)
    assert weights is None
    return output


def test_attention_is_that_worked_by_hand():
    # Two sequences of 1 and 2 tokens, one head of size 1. The last token weighs values 20 and 40 by e^(1·0) : e^(1·ln 3).
    query = torch.tensor([5.0, 5.0, 1.0]).view(1, 1, 3, 1)
    key = torch.tensor([7.0, 0.0, math.log(3)]).view(1, 1, 3, 1)
    value = torch.tensor([10.0, 20.0, 40.0]).view(1, 1, 3, 1)
    output = attention(query, key, value, packed_row([1, 2]))
    assert output.shape == (1, 3, 1, 1)
    assert output.flatten().tolist() == pytest.approx([10.0, 20.0, 0.25 * 20 + 0.75 * 40])


def test_a_continuation_attends_to_the_beginning_and_to_itself_as_worked_by_hand():
    # A beginning of one token, value 20 and key 0, which three sequences share. Each goes on with keys ln 3.
    # First: one token of value 40. Second: values 60 and 100. Third: value 0. The second's last token weighs 1 : 3 : 3.
    query = torch.ones(1, 1, 5, 1)
    key = torch.tensor([0.0] + [math.log(3)] * 4).view(1, 1, 5, 1)
    value = torch.tensor([20.0, 40.0, 60.0, 100.0, 0.0]).view(1, 1, 5, 1)
    row = packed_row([2, 3, 2], [0, 1, 1])
    assert row.tokens_S.tolist() == [0, 1, 4, 5, 7]
    assert row.places_BL.tolist() == [[0, 1, 0], [0, 2, 3], [0, 4, 0]]
    assert row.query_bounds.tolist() == [0, 2, 4, 5] and row.key_bounds.tolist() == [0, 2, 5, 7]
    assert row.key_places.tolist() == [0, 1, 0, 2, 3, 0, 4]
    output = attention(query, key, value, row)
    assert output.flatten().tolist() == pytest.approx([20, (20 + 120) / 4, (20 + 180) / 4, (20 + 180 + 300) / 7, 5])


def test_sequences_of_similar_lengths_are_one_call():
    # Beside 200 tokens each of 4 would be padded to 200, 39,984 products of padding: more than the 8,192 that a call costs.
    assert plan_calls([4, 200, 4, 5], [0, 0, 0, 0]) == [[1], [3, 0, 2]]
    # Those without a common beginning need no mask, and so have a call of their own.
    assert plan_calls([5, 5, 5], [0, 3, 0]) == [[1], [0, 2]]
    # Continuations of beginnings of 10 and 8 tokens: 2 · 4 · 14 products instead of 4 · 14 + 4 · 12.
    assert plan_calls([10, 4, 8, 4], [0, 10, 0, 8]) == [[1, 3], [0, 2]]


def test_continuations_of_several_beginnings_attend_to_their_own_in_one_call():
    generator = torch.Generator().manual_seed(0)
    lengths, shared = [4, 5, 6, 3, 4], [0, 2, 2, 0, 1]
    whole = packed_row(lengths, shared)
    assert [len(call.queries_GN) for call in whole.calls] == [3, 2]
    query, key, value = torch.randn(3, 1, 2, len(whole.tokens_S), 8, generator=generator)
    together = attention(query, key, value, whole)
    first = packed_row(lengths[:3], shared[:3])
    cut = len(first.tokens_S)
    parts = [
        attention(*(each[:, :, part] for each in (query, key, value)), row)
        for part, row in ((slice(cut), first), (slice(cut, None), packed_row(lengths[3:], shared[3:])))
    ]
    torch.testing.assert_close(together, torch.cat(parts, dim=1))


def test_queries_share_the_keys_of_their_group():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 5, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, 5, 8, generator=generator)
    repeated = [tensor.repeat_interleave(2, dim=1) for tensor in (key, value)]
    for row in (packed_row([2, 3]), packed_row([3, 3], [0, 1])):
        ours = attention(query, key, value, row, 0.3)
        torch.testing.assert_close(ours, attention(query, *repeated, row, 0.3))


def test_replayed_experts_of_packed_sequences_agree_on_unchanged_weights(moe_policy: Path):
    """Two minibatches of which the first teaches nothing: the second finds the weights of the old policy."""
    learner = Learner(config(num_minibatches=2), moe_policy)
    groups = rollout()
    for group in groups[:2]:
        group[:] = [replace(sample, advantage=0.0) for sample in group]
    before = parameters(learner)
    metrics = learner.step([*groups[:2], *([replace(s, advantage=0.0) for s in group] for group in groups[2:])]).metrics
    assert metrics["policy/routing_agreement"] == 1.0
    assert all(torch.equal(before[name], tensor) for name, tensor in parameters(learner).items())


def test_packing_leaves_room_for_more_sequences_in_a_microbatch(dense_policy: Path):
    samples = [sample for group in rollout() for sample in group]
    budget = max(len(sample.token_ids) for sample in samples) * 5
    counts = []
    for packing in (True, False):
        options = config(packing=packing, microbatch_tokens=budget)
        options = replace(options, learner=replace(options.learner, share_prefixes=False))
        batches = Learner(options, dense_policy).make_microbatches(samples)
        tokens = [int(batch.lengths_B.sum()) if packing else batch.tokens_BL.numel() for batch in batches]
        assert max(tokens) <= budget
        assert sum(int(batch.lengths_B.sum()) for batch in batches) == sum(len(sample.token_ids) for sample in samples)
        counts.append(len(batches))
    assert counts[0] < counts[1]


def test_real_tokens_are_the_first_of_each_row():
    assert real_tokens(torch.tensor([1, 3]), 3).tolist() == [[True, False, False], [True, True, True]]
    assert np.array_equal(real_tokens(torch.tensor([2]), 2).numpy(), [[True, True]])


@pytest.mark.gpu
def test_packed_equals_padded_on_a_gpu(policy: Path):
    samples = [sample for group in CONTENTS["images"] for sample in group]
    for dtype, bound in (("float32", 1e-4), ("bfloat16", 0.3)):
        found = []
        for packing in (True, False):
            options = config(dtype=dtype, packing=packing)
            learner = Learner(replace(options, learner=replace(options.learner, gpus=1)), policy)
            batches = learner.make_microbatches(samples)
            found.append(by_tokens(batches, [its.cpu() for its in learner.old_logprobs(batches)]))
        for tokens, logprobs_N in found[1].items():
            assert (found[0][tokens] - logprobs_N).abs().max() <= bound


@pytest.mark.gpu
def test_one_kernel_for_the_whole_row_gives_what_one_for_each_sequence_gives():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 84, 32, generator=generator).cuda()
    key, value = torch.randn(2, 1, 2, 84, 32, generator=generator).cuda()
    for row in (packed_row([1, 70, 13]), packed_row([50, 45, 59], [0, 35, 35])):
        found = []
        for device in ("cuda", "cpu"):  # one kernel, then a call for each sequence
            leaves = [tensor.bfloat16().to(device).detach().requires_grad_() for tensor in (query, key, value)]
            output = attention(*leaves, row.to(torch.device(device)), 0.2)
            output.square().sum().backward()
            found.append([output.cpu(), *(leaf.grad.cpu() for leaf in leaves)])
        for ours, theirs in zip(*found, strict=True):
            assert ours.shape == theirs.shape
            assert difference(ours.float(), theirs.float()) <= 1e-2  # bfloat16 has 8 bits
