"""Every objective against closed forms: value and gradient of single tokens, then what all of them share."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import Tensor

from rl.config import TrainConfig
from rl.config.checks import OBJECTIVE_NAMES
from rl.objectives import (
    OBJECTIVES,
    accepted,
    check_objective,
    choose_objective,
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    gspo_loss,
    vespo_loss,
)
from rl.sapo import sapo_loss
from tests.losses import double, gate, slope, value_and_gradient

INF, NAN = math.inf, math.nan
ALL = pytest.mark.parametrize("name", sorted(OBJECTIVES))


# One token, ratio r, advantage A: the value −f(r) A and the gradient with respect to log π, worked by hand.
ONE_TOKEN = [
    ("sapo", 2.0, 1.0, -gate(2.0, 1.0), -slope(2.0, 1.0)),
    ("sapo", 0.5, -1.0, gate(0.5, 1.05), slope(0.5, 1.05)),
    # 2/τ F(u) and F'(u) r with u = τ (r − 1) / 2; τ = 1 for A > 0, 1.05 for A < 0.
    ("sapo_erf", 2.0, 1.0, -math.sqrt(math.pi) * (1 + math.erf(0.5)), -2 * math.exp(-0.25)),
    ("sapo_arctan", 3.0, 1.0, -2 * (math.pi / 2 + math.pi / 4), -3 / 2),  # u = 1
    ("sapo_arctan", 0.5, -1.0, 2 / 1.05 * (math.pi / 2 - math.atan(0.2625)), 0.5 / (1 + 0.2625**2)),
    ("sapo_softsign", 3.0, 1.0, -2 * 1.5, -3 / 4),  # u = 1: 1 + 1/2, and 1/4
    ("sapo_one_sided", 1.1, 1.0, -gate(1.1, 20.0), -slope(1.1, 20.0)),  # favoured: SAPO at τ = 20
    ("sapo_one_sided", 0.5, 1.0, 0.4, -0.5),  # a fallen good token: r − 1 + f(1) = −.5 + 2/20, slope r
    ("sapo_one_sided", 0.9, -1.0, gate(0.9, 21.0), slope(0.9, 21.0)),
    ("sapo_one_sided", 2.0, -1.0, 1 + 2 / 21, 2.0),  # a risen bad token
    ("sapo_sequence", 1.0004, 1.0, -gate(1.0004, 9000.0), -slope(1.0004, 9000.0)),  # sapo_one_sided at another τ
    ("sapo_sequence", 2.0, -1.0, 1 + 2 / 12000, 2.0),
    ("sapo_log", 4.0, 1.0, -4 * 0.8, -4 * 0.8 * 0.2),  # σ(log 4) = 4/5: 4p, and 4p (1 − p) without r
    ("sapo_log", 0.25, 1.0, -4 * 0.2, -4 * 0.8 * 0.2),  # as at 4
    ("sspo", 2.0, 1.0, -gate(2.0, 1.0), -slope(2.0, 1.0)),  # of one token SSPO is SAPO
    ("sspo", 0.5, -1.0, gate(0.5, 1.05), slope(0.5, 1.05)),
    ("policy_gradient", 2.0, 1.0, -2.0, -2.0),
    ("policy_gradient", 0.5, -3.0, 1.5, 1.5),
    ("grpo", 1.1, 2.0, -2.2, -2.2),  # inside
    ("grpo", 1.3, 1.0, -1.27, 0.0),  # beyond 1 + 0.27: cut off
    ("grpo", 0.7, 1.0, -0.7, -0.7),  # a fallen good token may always come back
    ("grpo", 0.7, -1.0, 0.8, 0.0),  # below 1 − 0.2: cut off
    ("grpo", 1.3, -1.0, 1.3, 1.3),  # a risen bad token may always be pushed down
    ("dapo", 1.275, 1.0, -1.275, -1.275),  # clip-higher: 1.28
    ("dapo", 1.3, 1.0, -1.28, 0.0),
    ("dapo", 0.7, -1.0, 0.8, 0.0),
    ("dr_grpo", 1.1, 2.0, -2.2, -2.2),
    ("dr_grpo", 1.25, 1.0, -1.2, 0.0),
    ("gspo", 1.0003, 2.0, -2.0006, -2.0006),
    ("gspo", 1.0005, 1.0, -1.0004, 0.0),
    ("gspo", 0.9996, -1.0, 0.9997, 0.0),
    ("cispo", 2.0, 1.0, -2.0 * (-2 + math.log(2)), -2.0),  # −min(r, 5) · A · log π
    ("cispo", 8.0, 1.0, -5.0 * (-2 + math.log(8)), -5.0),  # capped, and still with a gradient
    ("cispo", 8.0, -0.5, 2.5 * (-2 + math.log(8)), 2.5),
    ("vespo", 1.0, 1.5, 3.0, -1.5),  # φ(1) = 1; −A log π = −1.5 · −2
    ("vespo", 2.0, 1.0, -4 * math.exp(-3) * (-2 + math.log(2)), -4 * math.exp(-3)),  # 2² e^(3 (1 − 2))
    ("vespo", 0.5, -1.0, 0.125 * math.e * (-2 - math.log(2)), 0.125 * math.e),  # 0.5³ e^(2 (1 − 0.5))
]


@pytest.mark.parametrize(("name", "ratio", "advantage", "value", "slope_"), ONE_TOKEN)
def test_one_token_has_the_value_and_the_gradient_worked_by_hand(
    name: str, ratio: float, advantage: float, value: float, slope_: float
):
    loss, [[gradient]] = value_and_gradient(OBJECTIVES[name], [[ratio]], [advantage])
    assert loss == pytest.approx(value, abs=1e-12)
    assert gradient == pytest.approx(slope_, abs=1e-12)


def test_the_table_has_every_objective():
    assert {row[0] for row in ONE_TOKEN} == set(OBJECTIVES)


# Two responses of 1 and 3 tokens on policy, A = 1 each: what each objective's mean makes of a token.
SHARES = {
    "sapo": (1 / 2, 1 / 6),
    "grpo": (1 / 2, 1 / 6),
    **dict.fromkeys(
        ("sapo_one_sided", "sapo_sequence", "sapo_log", "sapo_erf", "sapo_arctan", "sapo_softsign", "sspo"),
        (1 / 2, 1 / 6),
    ),
    "policy_gradient": (1 / 2, 1 / 6),
    "gspo": (1 / 2, 1 / 6),
    "dapo": (1 / 4, 1 / 4),
    "cispo": (1 / 4, 1 / 4),
    "vespo": (1 / 4, 1 / 4),
    "dr_grpo": (1 / 6, 1 / 6),  # 2 sequences × 3 positions
}


@ALL
def test_each_objective_shares_out_its_gradient_as_its_mean_says(name: str):
    short, long = SHARES[name]
    _, gradient = value_and_gradient(OBJECTIVES[name], [[1.0, 0, 0], [1.0, 1.0, 1.0]], [1.0, 1.0])
    assert torch.allclose(double(gradient), double([[-short, 0, 0], [-long] * 3]), rtol=0, atol=1e-12)


def test_dr_grpo_divides_by_the_length_that_it_is_given():
    _, gradient = value_and_gradient(dr_grpo_loss, [[1.0, 0], [1.0, 1.0]], [1.0, 1.0], max_tokens=10)
    assert double(gradient).tolist() == double([[-0.05, 0], [-0.05, -0.05]]).tolist()


def test_gspo_cuts_whole_responses_by_their_geometric_mean():
    # √(2 · 0.5) = 1: inside, though both tokens are far out; the gradient is s · A / |y| for each.
    loss, gradient = value_and_gradient(gspo_loss, [[2.0, 0.5]], [3.0])
    assert loss == pytest.approx(-3.0)
    assert gradient[0] == pytest.approx([-1.5, -1.5])
    assert value_and_gradient(gspo_loss, [[2.0, 0.6]], [3.0])[1] == [[0.0, 0.0]]  # √1.2 > 1.0004


def test_vespo_weighs_by_the_product_of_the_ratios_without_regard_to_length():
    # W = 2 · 0.5 · 2 = 2: φ = 4 e⁻³ for each of the three tokens, over 3 tokens.
    _, gradient = value_and_gradient(vespo_loss, [[2.0, 0.5, 2.0]], [1.0])
    assert gradient[0] == pytest.approx([-4 * math.exp(-3) / 3] * 3)


@ALL
def test_on_policy_every_objective_is_the_policy_gradient(name: str):
    _, [[gradient]] = value_and_gradient(OBJECTIVES[name], [[1.0]], [-0.7])
    assert gradient == pytest.approx(0.7, abs=1e-12)


@ALL
def test_zero_advantage_contributes_exactly_nothing(name: str):
    loss, gradient = value_and_gradient(OBJECTIVES[name], [[3.0, 0.2], [1.0, 5.0]], [0.0, 0.0])
    assert loss == 0.0
    assert double(gradient).count_nonzero() == 0


@ALL
def test_a_response_without_tokens_contributes_nothing(name: str):
    with_empty = value_and_gradient(OBJECTIVES[name], [[1.2, 0.9], [0, 0]], [1.0, 5.0], **counts(name, 1, 2))
    alone = value_and_gradient(OBJECTIVES[name], [[1.2, 0.9]], [1.0], **counts(name, 1, 2))
    assert with_empty[0] == alone[0]
    assert with_empty[1] == [*alone[1], [0.0, 0.0]]
    assert value_and_gradient(OBJECTIVES[name], [[0, 0]], [1.0]) == (0.0, [[0.0, 0.0]])


def counts(name: str, num_sequences: int, num_tokens: int) -> dict[str, object]:
    return accepted(OBJECTIVES[name], {"num_sequences": num_sequences, "num_tokens": num_tokens})


@ALL
@pytest.mark.parametrize("outside", [INF, -INF, NAN])
def test_whatever_lies_outside_the_mask_changes_nothing(name: str, outside: float):
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    old = torch.full((2, 3), -2.0)
    new = old + torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.0, 0.0]])
    advantages = torch.tensor([1.0, -2.0])
    clean_loss, clean_metrics = OBJECTIVES[name](new, old, advantages, mask)
    dirty = new.masked_fill(~mask, outside).requires_grad_()
    loss, metrics = OBJECTIVES[name](dirty, old.masked_fill(~mask, outside), advantages, mask)
    loss.backward()
    assert loss.item() == clean_loss.item()
    assert metrics == clean_metrics
    assert dirty.grad.isfinite().all() and not dirty.grad[~mask].any()


@ALL
@pytest.mark.parametrize("log_ratio", [100.0, 1e4, -100.0, -1e4])
def test_ratios_that_overflow_leave_loss_gradient_and_metrics_finite(name: str, log_ratio: float):
    for advantage in (1.0, -1.0):
        new = torch.tensor([[log_ratio, 0.0]], requires_grad=True)
        loss, metrics = OBJECTIVES[name](new, torch.zeros(1, 2), torch.tensor([advantage]), torch.ones(1, 2))
        loss.backward()
        assert loss.isfinite() and new.grad.isfinite().all()
        assert all(value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"cispo", "vespo"}))
def test_gradient_agrees_with_finite_differences(name: str):
    generator = torch.Generator().manual_seed(0)
    old = -2 * torch.rand(4, 5, dtype=torch.float64, generator=generator)
    new = (old + 0.3 * torch.randn(4, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
    options = {"clip_low": 0.2, "clip_high": 0.3} if name == "gspo" else {}
    advantages = double([1.3, -0.7, 2.0, 1.0])
    assert torch.autograd.gradcheck(lambda x: OBJECTIVES[name](x, old, advantages, mask, **options)[0], new)


@pytest.mark.parametrize("objective", [cispo_loss, vespo_loss])
def test_gradient_of_a_detached_weight_is_that_of_the_log_likelihood_weighted_by_it(objective: Callable):
    """Their weight is held fixed: finite differences are taken of Σ weight · log π with the weight of the starting point."""
    generator = torch.Generator().manual_seed(0)
    old = -2 * torch.rand(3, 4, dtype=torch.float64, generator=generator)
    new = (old + 0.3 * torch.randn(3, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    mask = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
    advantages = double([1.3, -0.7, 2.0])
    loss, _ = objective(new, old, advantages, mask)
    (gradient,) = torch.autograd.grad(loss, new)
    with torch.no_grad():
        total = (gradient * new).sum()  # loss is linear in log π where the weight is constant
    assert loss.item() == pytest.approx(total.item(), abs=1e-12)


@ALL
def test_losses_and_gradients_of_any_split_add_up_to_the_whole(name: str):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 1, 0, 4, 3, 6, 2])
    old = -torch.rand(7, 6, generator=generator, dtype=torch.float64)
    new = old + 0.2 * torch.randn(7, 6, generator=generator, dtype=torch.float64)
    advantages = torch.randn(7, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < lengths[:, None]
    objective = partial(OBJECTIVES[name], **counts(name, 7, int(lengths.sum())))
    objective = partial(objective, **accepted(OBJECTIVES[name], {"max_tokens": 6}))

    def loss_and_gradient(rows: list[int]) -> tuple[float, Tensor]:
        part = new[rows].clone().requires_grad_()
        loss, _ = objective(part, old[rows], advantages[rows], mask[rows])
        loss.backward()
        return loss.item(), part.grad

    whole, whole_gradient = loss_and_gradient(list(range(7)))
    pieces = [[0, 3], [1, 2, 6], [4], [5]]
    assert sum(loss_and_gradient(rows)[0] for rows in pieces) == pytest.approx(whole, abs=1e-12)
    for rows in pieces:
        assert torch.allclose(loss_and_gradient(rows)[1], whole_gradient[rows], rtol=0, atol=1e-12)


@ALL
def test_every_objective_reports_the_same_diagnostics(name: str):
    zeros = torch.zeros(2, 3)
    _, metrics = OBJECTIVES[name](zeros, zeros, torch.tensor([1.0, -1.0]), torch.ones(2, 3))
    _, of_sapo = sapo_loss(zeros, zeros, torch.tensor([1.0, -1.0]), torch.ones(2, 3))
    assert {key: value.item() for key, value in metrics.items()} == {key: v.item() for key, v in of_sapo.items()}


def test_the_gate_says_which_tokens_are_cut_off_by_sign():
    # r = 1.5 and 1 of a good response, 0.5 and 1.5 of a bad one: one of each is beyond its favoured side.
    ratios = torch.tensor([[1.5, 1.0], [0.5, 1.5]]).log()
    _, metrics = dapo_loss(ratios, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), torch.ones(2, 2))
    assert [metrics[f"gate_mean{sign}"].item() for sign in ("", "_positive", "_negative")] == [0.5, 0.5, 0.5]
    _, metrics = dapo_loss(ratios, torch.zeros(2, 2), torch.tensor([1.0, 1.0]), torch.ones(2, 2))
    assert [metrics[f"gate_below_half{sign}"].item() for sign in ("", "_positive", "_negative")] == [0.5, 0.5, 0.0]


def test_percentiles_are_those_of_the_tokens_inside_the_mask():
    ratio = torch.arange(1, 102).float()[None] / 100  # 0.01 … 1.01
    mask = torch.ones_like(ratio)
    mask[0, -1] = 0  # 1.01 lies outside
    _, metrics = sapo_loss(ratio.log(), torch.zeros_like(ratio), torch.ones(1), mask)
    picked = [metrics[f"ratio_{name}"].item() for name in ("min", "p01", "p50", "p99", "max")]
    assert picked == pytest.approx([0.01, 0.02, 0.51, 0.99, 1.0])  # ranks 0, 1, 50, 98, 99 of 100


def config(**options: object) -> TrainConfig:
    return TrainConfig(model="unused", **options)


def test_a_config_hands_its_options_to_the_objective_that_takes_them():
    chosen = choose_objective(config(tau_neg=1.3))
    assert (chosen.func, chosen.keywords) == (sapo_loss, {"tau_neg": 1.3})
    chosen = choose_objective(config(objective="dr_grpo", clip_high=0.3))
    assert (chosen.func, chosen.keywords) == (dr_grpo_loss, {"max_tokens": 1024, "clip_high": 0.3})


def test_the_names_that_a_config_accepts_are_those_of_the_objectives():
    assert tuple(OBJECTIVES) == OBJECTIVE_NAMES


def test_an_option_that_the_objective_does_not_have_is_refused():
    with pytest.raises(ValueError, match="^objective 'grpo' does not take tau_neg = 1.2: leave it out$"):
        choose_objective(config(objective="grpo", tau_neg=1.2))
    with pytest.raises(
        ValueError, match="^objective 'sapo' does not take clip_low = 0.1 and clip_high = 0.2: leave it out$"
    ):
        choose_objective(config(clip_low=0.1, clip_high=0.2))
    with pytest.raises(ValueError, match="^objective 'cispo' does not take clip_low = 0.1: leave it out$"):
        choose_objective(config(objective="cispo", clip_low=0.1))


MINE = """
def mine(logprobs, old, advantages, mask, *, num_sequences, clip_high=0.1):
    return -(logprobs.masked_fill(~mask, 0).sum(1) * advantages).sum() / num_sequences, {}

def no_counts(logprobs, old, advantages, mask):
    return logprobs.mean(), {}

def broken(logprobs, old, advantages, mask, *, num_sequences):
    return logprobs.no_such_method(), {}

def leaky(logprobs, old, advantages, mask, *, num_sequences):
    return logprobs.sum(), {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "losses.py"
    path.write_text(MINE)
    return path


def test_an_objective_from_a_file_takes_part_like_any_other(file: Path):
    chosen = choose_objective(config(objective=f"{file}:mine", clip_high=0.5))
    check_objective(chosen)
    assert chosen.keywords == {"clip_high": 0.5}
    again = pickle.loads(cloudpickle.dumps(chosen))  # on its way to the learner's process
    assert value_and_gradient(again, [[1.0, 1.0]], [2.0], num_sequences=1)[1] == [[-2.0, -2.0]]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_counts", "takes neither num_sequences nor num_tokens: it could not be split into microbatches"),
        ("broken", "failed on a trial batch: AttributeError: 'Tensor' object has no attribute 'no_such_method'"),
        ("leaky", "the gradient 0 outside the mask"),
    ],
)
def test_an_objective_that_cannot_work_is_refused_before_anything_starts(file: Path, name: str, complaint: str):
    with pytest.raises(ValueError, match=re.escape(complaint)) as error:
        check_objective(choose_objective(config(objective=f"{file}:{name}")))
    assert str(error.value).startswith(f"objective '{name}' ")


@ALL
def test_every_objective_passes_the_trial(name: str):
    check_objective(OBJECTIVES[name])


def test_an_objective_is_given_what_it_asks_for():
    def mine(logprobs, old, advantages, mask, *, num_tokens):
        return logprobs.sum() / num_tokens, {}

    available = {"num_sequences": 3, "num_tokens": 5}
    assert accepted(mine, available) == {"num_tokens": 5}
    assert accepted(sapo_loss, available) == {"num_sequences": 3}
    assert accepted(lambda *_, **counts: None, available) == available
