"""Denominators of a loss: exchanged in every objective, with shares worked by hand, and for any split."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.config import TrainConfig
from rl.config.learning import Aggregation
from rl.objectives import OBJECTIVES, accepted, choose_objective, dapo_loss, dr_grpo_loss, grpo_loss
from rl.objectives.aggregation import aggregated_loss
from rollout.config import RolloutConfig

ALL = pytest.mark.parametrize("name", sorted(OBJECTIVES))
# Two responses of 1 and 3 tokens on policy, A = 1 each: the share of a token of each, with max_tokens = 10.
SHARES = {"sequence_mean": (1 / 2, 1 / 6), "token_mean": (1 / 4, 1 / 4), "constant_length": (1 / 20, 1 / 20)}
MASK = torch.tensor([[True, False, False], [True, True, True]])


def chosen(name: str, aggregation: Aggregation | None) -> Callable:
    options = TrainConfig(model="unused", objective=name, aggregation=aggregation, rollout=RolloutConfig(max_tokens=10))
    return choose_objective(options)


def gradient(objective: Callable, log_ratio: Tensor, advantages: Tensor, mask: Tensor, **counts: int) -> Tensor:
    logprobs = (log_ratio - 2).requires_grad_()
    loss, _ = objective(logprobs, torch.full_like(log_ratio, -2), advantages, mask, **accepted(objective, counts))
    return torch.autograd.grad(loss, logprobs)[0]


@ALL
@pytest.mark.parametrize("aggregation", sorted(SHARES))
def test_every_objective_shares_out_its_gradient_as_the_chosen_denominator_says(name: str, aggregation: Aggregation):
    short, long = SHARES[aggregation]
    found = gradient(chosen(name, aggregation), torch.zeros(2, 3).double(), torch.ones(2).double(), MASK)
    assert found.allclose(torch.tensor([[-short, 0, 0], [-long] * 3], dtype=torch.float64), rtol=0, atol=1e-12)


@ALL
@pytest.mark.parametrize("aggregation", sorted(SHARES))
def test_losses_of_any_split_add_up_to_the_whole(name: str, aggregation: Aggregation):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 1, 0, 4, 3])
    log_ratio = 0.2 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    advantages = torch.randn(5, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < lengths[:, None]
    counts = {"num_sequences": 5, "num_tokens": int(lengths.sum())}
    objective = chosen(name, aggregation)
    whole = gradient(objective, log_ratio, advantages, mask, **counts)
    for rows in ([0, 3], [1, 2], [4]):
        part = gradient(objective, log_ratio[rows], advantages[rows], mask[rows], **counts)
        assert part.allclose(whole[rows], rtol=0, atol=1e-12)


def test_grpo_with_tokens_weighed_alike_is_dapo_and_with_a_constant_length_dr_grpo():
    generator = torch.Generator().manual_seed(0)
    log_ratio = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.0, -2.0]).double()
    bounds = {"clip_low": 0.2, "clip_high": 0.28}
    by_token = partial(
        aggregated_loss,
        objective=partial(grpo_loss, **bounds),
        own="sequence_mean",
        wanted="token_mean",
        max_tokens=10,
    )
    assert gradient(by_token, log_ratio, advantages, MASK).allclose(
        gradient(partial(dapo_loss, **bounds), log_ratio, advantages, MASK), rtol=0, atol=1e-12
    )
    constant = partial(by_token, wanted="constant_length")
    assert gradient(constant, log_ratio, advantages, MASK).allclose(
        gradient(partial(dr_grpo_loss, max_tokens=10, **bounds), log_ratio, advantages, MASK), rtol=0, atol=1e-12
    )


def test_advantages_of_single_tokens_are_divided_like_those_of_sequences():
    by_token = torch.tensor([[1.0, 0, 0], [1.0, -1.0, 2.0]]).double()
    found = gradient(chosen("sapo", "constant_length"), torch.zeros(2, 3).double(), by_token, MASK)
    assert found.allclose(-by_token / 20, rtol=0, atol=1e-12)


@pytest.mark.parametrize("outside", [math.inf, -math.inf, math.nan])
def test_whatever_lies_outside_the_mask_changes_nothing(outside: float):
    dirty = torch.full((2, 3), 0.1).masked_fill(~MASK, outside)
    found = gradient(chosen("sapo", "token_mean"), dirty, torch.tensor([1.0, -1.0]), MASK)
    assert found.isfinite().all() and not found[~MASK].any()


def test_an_objective_of_a_file_divides_by_itself(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(logprobs, old, advantages, mask, *, num_sequences): return logprobs.sum(), {}")
    with pytest.raises(ValueError, match="whose denominator is its own: divide in that function, and leave the option"):
        chosen(f"{file}:mine", "token_mean")


def test_a_chosen_objective_can_be_sent_to_another_process():
    again = pickle.loads(pickle.dumps(chosen("sapo_erf", "token_mean")))
    found = gradient(again, torch.zeros(2, 3), torch.ones(2), MASK)
    assert found[MASK].tolist() == pytest.approx([-0.25] * 4)
