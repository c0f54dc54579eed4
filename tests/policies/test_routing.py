"""Experts recorded in one forward pass and replayed in another, on a small Qwen3-VL-MoE."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from policies.inputs import hidden_states
from policies.loading import load_policy
from policies.packing import padded_row
from policies.routing import UNKNOWN, RoutingReplay, balance_loss

TOKENS = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(7).expand(3, 2, 7)
LAYERS, TOKENS_IN_ALL, TOP_K = 4, 14, 2


@pytest.fixture
def model(moe_policy: Path) -> torch.nn.Module:
    return load_policy(moe_policy, dtype=torch.float32, device="cpu")


def forward(model: torch.nn.Module) -> Tensor:
    return hidden_states(model, TOKENS, POSITIONS, None, padded_row(2, 7))


def record(model: torch.nn.Module, replay: RoutingReplay) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), replay.record() as recorded:
        hidden = forward(model)
    return hidden, recorded[0]


def shake(model: torch.nn.Module, scale: float = 0.5) -> None:
    """New weights, on which tokens choose other experts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * parameter.std() * torch.randn(parameter.shape, generator=generator)


def test_a_record_has_every_layer_token_and_choice(model: torch.nn.Module):
    _, experts = record(model, RoutingReplay(model))
    assert experts.shape == (LAYERS, TOKENS_IN_ALL, TOP_K)
    assert experts.dtype == torch.int16
    assert experts.unique().tolist() == list(range(8))  # all eight are used by somebody
    assert (experts[..., 0] != experts[..., 1]).all()


def test_replay_on_unchanged_weights_changes_no_bit(model: torch.nn.Module):
    replay = RoutingReplay(model)
    hidden, experts = record(model, replay)
    with torch.no_grad(), replay.replay(experts):
        assert torch.equal(forward(model), hidden)
    agreeing, compared = replay.take_agreement()
    assert agreeing == compared == LAYERS * TOKENS_IN_ALL
    assert replay.take_agreement() == (0, 0)


def test_on_new_weights_the_recorded_experts_are_taken_all_the_same(model: torch.nn.Module):
    replay = RoutingReplay(model)
    _, experts = record(model, replay)
    shake(model)
    free, own = record(model, replay)
    assert not torch.equal(own, experts)
    with torch.no_grad(), replay.replay(experts), replay.record():
        replayed = forward(model)
    assert not torch.allclose(replayed, free)
    agreeing, compared = replay.take_agreement()
    assert 0 < agreeing < compared


def test_agreement_is_the_share_of_equal_sets_whatever_their_order(model: torch.nn.Module):
    replay = RoutingReplay(model)
    _, experts = record(model, replay)
    turned = experts.flip(2)  # the same sets
    turned[0, 0, 0] = (experts[0, 0, 1] + 1 + (experts[0, 0, 0] == experts[0, 0, 1] + 1)) % 8  # one other choice
    with torch.no_grad(), replay.replay(turned):
        forward(model)
    # That token's other layers may choose otherwise in consequence, and so may the tokens behind it in its row of 7.
    agreeing, compared = replay.take_agreement()
    assert (1 - 7 / TOKENS_IN_ALL) * compared <= agreeing < compared
    assert replay.take_agreement() == (0, 0)


def test_unknown_tokens_are_routed_afresh_and_not_counted(model: torch.nn.Module):
    replay = RoutingReplay(model)
    _, experts = record(model, replay)
    shake(model)
    free, _ = record(model, replay)
    with torch.no_grad(), replay.replay(torch.full_like(experts, UNKNOWN)):
        assert torch.allclose(forward(model), free, rtol=0, atol=1e-6)
    assert replay.take_agreement() == (0, 0)


def test_under_replay_the_router_still_gets_its_gradient(model: torch.nn.Module):
    replay = RoutingReplay(model)
    _, experts = record(model, replay)
    shake(model)
    with replay.replay(experts):
        forward(model).square().sum().backward()
    for router in replay.routers:
        assert router.weight.grad.norm() > 0


def test_weights_of_replayed_experts_are_the_present_probabilities_of_just_these(model: torch.nn.Module):
    replay = RoutingReplay(model)
    router = replay.routers[0]
    hidden = torch.randn(1, router.hidden_dim, generator=torch.Generator().manual_seed(2))
    experts = torch.zeros(LAYERS, 1, TOP_K, dtype=torch.int16)
    experts[0, 0] = torch.tensor([6, 3])
    with torch.no_grad(), replay.replay(experts):
        logits, weights, chosen = router(hidden)
    assert chosen.tolist() == [[6, 3]]
    expected = logits[0, [6, 3]].exp() / logits[0, [6, 3]].exp().sum()
    assert weights[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_record_of_another_shape_is_refused_with_both_shapes(model: torch.nn.Module):
    replay = RoutingReplay(model)
    with pytest.raises(ValueError, match=r"= \[3, 14, 2\], but the model has 4 routers that choose 2 experts"):
        with replay.replay(torch.ones(3, 14, 2, dtype=torch.int16)):
            pass


def test_a_record_of_zeros_only_is_refused(model: torch.nn.Module):
    with pytest.raises(ValueError, match="every recorded expert is number 0"):
        with RoutingReplay(model).replay(torch.zeros(4, 14, 2, dtype=torch.int16)):
            pass


def test_a_dense_policy_records_nothing(dense_policy: Path):
    model = load_policy(dense_policy, dtype=torch.float32, device="cpu")
    replay = RoutingReplay(model)
    with replay.record() as recorded, torch.no_grad():
        forward(model)
    assert recorded == []
    with replay.replay(None):
        pass
    assert replay.take_agreement() == (0, 0)


def test_the_balance_loss_is_that_worked_by_hand():
    # Two experts, one choice per token. A sequence of two tokens, probabilities (3/4, 1/4) and (1/4, 3/4): even in choice and in
    # mean, 2 (½ · ½ + ½ · ½) = 1. Another of one token, (3/4, 1/4): 2 · 1 · 3/4 = 1.5. What no sequence has counts for nothing.
    odds = math.log(3)
    logits_NE = torch.tensor([[odds, 0.0], [0.0, odds], [9.0, 0.0], [odds, 0.0]], requires_grad=True)
    routed = [(logits_NE, torch.tensor([[0], [1], [0], [0]]))]
    places, sequences = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1])
    loss = balance_loss(routed, places, sequences, 2)
    assert loss.item() == pytest.approx((1 + 1.5) / 2)
    assert balance_loss(routed * 3, places, sequences, 5).item() == pytest.approx((1 + 1.5) / 5)
    loss.backward()
    # ∂/∂ logit of 2 p_0 / 2 is p_0 p_1 = 3/16 in the last token; an evenly chosen pair pushes nowhere.
    assert logits_NE.grad[3].tolist() == pytest.approx([3 / 16, -3 / 16])
    assert logits_NE.grad[:3].abs().max() <= 1e-7
