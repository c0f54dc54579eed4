"""The known faults of implementations of SAPO, a check for each.

Shapes: B sequences, T token positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from rl.objectives.contract import accepted
from rl.objectives.faults.subject import (
    TAU,
    Comparison,
    Subject,
    gradient,
    loss_of,
    make_batch,
    over,
    sapo_weight,
    token_gradient,
    token_weight,
)

INF, NAN = math.inf, math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One fault, and the numbers that show it."""

    name: str
    title: str
    """The rule that a right implementation follows."""
    harm: str
    """The consequence of the fault, and its sign in a run."""
    compare: Callable[[Subject], Iterator[Comparison]]


def _sign(subject: Subject) -> Iterator[Comparison]:
    measured = math.copysign(1.0, token_gradient(subject, 1.0, 1.0))
    yield Comparison(quantity="sign of the gradient at r = 1, A = 1", measured=[measured], expected=[-1.0])


def _scale(subject: Subject) -> Iterator[Comparison]:
    for tau in (1.0, 3.0):
        found = [abs(token_gradient(subject, 1.0, advantage, (tau, tau))) for advantage in (1.0, -1.0)]
        yield Comparison(quantity=f"|gradient| at r = 1, A = ±1, τ = {tau:g}", measured=found, expected=[1.0, 1.0])


def _advantage(subject: Subject) -> Iterator[Comparison]:
    advantages = [2.0, -0.5, -2.0]
    unit = token_gradient(subject, 1.0, 1.0, (1.0, 1.0))
    found = [over(token_gradient(subject, 1.0, advantage, (1.0, 1.0)), unit) for advantage in advantages]
    yield Comparison(quantity="gradient at A = 2, −½, −2 over A = 1", measured=found, expected=advantages)


def _zero_advantage(subject: Subject) -> Iterator[Comparison]:
    batch = make_batch([[1.0, 0.0], [0.0, 0.0]], [0.0, 1.0])
    found = gradient(subject, batch)[0].tolist()
    yield Comparison(quantity="gradient of a sequence with A = 0", measured=found, expected=[0.0, 0.0])
    loss = loss_of(subject, make_batch([[1.0, 0.0]], [0.0])).item()
    yield Comparison(quantity="loss of a batch with A = 0", measured=[loss], expected=[0.0])


def _sequence_mean(subject: Subject) -> Iterator[Comparison]:
    gradient_BT = gradient(subject, make_batch([[0.0] * 4] * 2, [1.0, 1.0], [1, 4]))
    unit = token_gradient(subject, 1.0, 1.0)
    found = [over(row, unit) for row in gradient_BT.sum(1).tolist()]
    yield Comparison(
        quantity="gradient of responses of 1 and 4 tokens over that of one alone", measured=found, expected=[0.5, 0.5]
    )


def _token_ratio(subject: Subject) -> Iterator[Comparison]:
    ratios = [3.0, 1 / 3]
    (row,) = gradient(subject, make_batch([[math.log(ratio) for ratio in ratios]], [1.0]), tau=(1.0, 1.0)).tolist()
    unit = token_gradient(subject, 1.0, 1.0, (1.0, 1.0))
    expected = [sapo_weight(ratio, 1.0) / 2 for ratio in ratios]
    quantity = "ω / 2 of the tokens r = 3 and ⅓ of one response"
    yield Comparison(quantity=quantity, measured=[over(value, unit) for value in row], expected=expected)


def _gate(subject: Subject) -> Iterator[Comparison]:
    ratios = [0.5, 2.0, 3.0, 5.0]
    found = [token_weight(subject, ratio, 1.0, (1.0, 1.0)) for ratio in ratios]
    expected = [sapo_weight(ratio, 1.0) for ratio in ratios]
    yield Comparison(quantity="ω at r = ½, 2, 3, 5, τ = 1", measured=found, expected=expected)


def _temperatures_read(subject: Subject) -> Iterator[Comparison]:
    for tau in (0.5, 4.0):
        found = [token_weight(subject, 2.0, advantage, (tau, tau)) for advantage in (1.0, -1.0)]
        expected = [sapo_weight(2.0, tau)] * 2
        yield Comparison(quantity=f"ω at r = 2, A = ±1, τ = {tau:g}", measured=found, expected=expected)


def _temperatures_by_sign(subject: Subject) -> Iterator[Comparison]:
    found = [token_weight(subject, 3.0, advantage) for advantage in (1.0, -1.0)]
    expected = [sapo_weight(3.0, tau) for tau in TAU]
    yield Comparison(quantity="ω at r = 3, A = ±1, τ = 1 and 1.05", measured=found, expected=expected)


def _no_clip(subject: Subject) -> Iterator[Comparison]:
    ratios = [0.6, 1.5]
    for advantage, tau in zip((1.0, -1.0), TAU, strict=True):
        found = [token_weight(subject, ratio, advantage) for ratio in ratios]
        expected = [sapo_weight(ratio, tau) for ratio in ratios]
        quantity = f"ω at r = .6 and 1.5, A = {advantage:g}"
        yield Comparison(quantity=quantity, measured=found, expected=expected, tolerance=0.05)


def _overflow(subject: Subject) -> Iterator[Comparison]:
    for log_ratio in (1e4, -1e4):
        for advantage in (1.0, -1.0):
            batch = make_batch([[log_ratio, 0.0]], [advantage])
            unit = token_gradient(subject, 1.0, advantage)
            found = [over(value, unit) for value in gradient(subject, batch)[0].tolist()]
            quantity = f"gradient at log r = {log_ratio:g}, and of the token beside it, A = {advantage:g}"
            yield Comparison(quantity=quantity, measured=found, expected=[0.0, 0.5])
            loss = loss_of(subject, batch).item()
            finite = loss if math.isfinite(loss) else 0.0
            yield Comparison(quantity=f"finite loss at log r = {log_ratio:g}", measured=[loss], expected=[finite])


def _outside_mask(subject: Subject) -> Iterator[Comparison]:
    clean = make_batch([[0.1, 0.2, 0.0]], [1.0], [2])
    expected = [loss_of(subject, clean).item(), *gradient(subject, clean)[0].tolist()[:2], 0.0]
    for value in (INF, -INF, NAN):
        for side in ("new", "old", "both"):
            new_BT, old_BT = (
                matrix.detach().masked_fill(~clean.mask_BT, value) if side in (name, "both") else matrix.detach()
                for name, matrix in (("new", clean.logprobs_BT), ("old", clean.old_logprobs_BT))
            )
            dirty = replace(clean, logprobs_BT=new_BT.clone().requires_grad_(), old_logprobs_BT=old_BT)
            found = [loss_of(subject, dirty).item(), *gradient(subject, dirty)[0].tolist()]
            quantity = f"loss and gradient with {value:g} outside the mask ({side}), as with a number there"
            yield Comparison(quantity=quantity, measured=found, expected=expected)


def _old_detached(subject: Subject) -> Iterator[Comparison]:
    batch = make_batch([[0.1]], [1.0])
    batch = replace(batch, old_logprobs_BT=batch.old_logprobs_BT.requires_grad_())
    loss = loss_of(subject, batch)
    (found,) = torch.autograd.grad(loss, batch.old_logprobs_BT, allow_unused=True, materialize_grads=True)
    yield Comparison(quantity="gradient of the old log-probability", measured=found[0].tolist(), expected=[0.0])
    itself = replace(batch, old_logprobs_BT=batch.logprobs_BT)
    unit = token_gradient(subject, 1.0, 1.0)
    measured = [over(gradient(subject, itself).item(), unit)]
    yield Comparison(quantity="the same tensor passed as new and as old", measured=measured, expected=[1.0])


def _empty_sequence(subject: Subject) -> Iterator[Comparison]:
    found = gradient(subject, make_batch([[0.0, 0.0]] * 2, [1.0, 1.0], [2, 0]))
    share, empty = (over(row, token_gradient(subject, 1.0, 1.0)) for row in found.sum(1).tolist())
    expected = [1.0 if share > 0.75 else 0.5, 0.0]  # N may leave the empty response out; `microbatches` checks N
    quantity = "gradient of a response beside one without tokens, and of that one"
    yield Comparison(quantity=quantity, measured=[share, empty], expected=expected)
    batch = make_batch([[0.0, 0.0]], [1.0], [0])
    values = [loss_of(subject, batch).item(), *gradient(subject, batch)[0].tolist()]
    yield Comparison(quantity="loss and gradient without any token", measured=values, expected=[0.0] * 3)


def _microbatches(subject: Subject) -> Iterator[Comparison]:
    log_ratios, advantages, lengths = [[0.1, -0.1, 0.05]] * 3, [1.0, -2.0, 0.5], [1, 3, 2]
    whole_BT = gradient(subject, make_batch(log_ratios, advantages, lengths), num_sequences=3)
    parts = [make_batch(log_ratios[rows], advantages[rows], lengths[rows]) for rows in (slice(0, 1), slice(1, 3))]
    split_BT = torch.cat([gradient(subject, part, num_sequences=3) for part in parts])
    taken = accepted(subject, {"num_sequences": 3})
    yield Comparison(
        quantity="gradient of a split 1 + 2 over that of 3 sequences at once, their first tokens",
        measured=[over(part, whole) for part, whole in torch.stack((split_BT[:, 0], whole_BT[:, 0]), 1).tolist()],
        expected=[1.0] * 3,
        note="" if taken else "it takes no num_sequences, so it cannot know the whole minibatch",
    )


def _low_precision(subject: Subject) -> Iterator[Comparison]:
    found = gradient(subject, make_batch([[12.0]], [1.0], dtype=torch.float16)).item()
    yield Comparison(quantity="gradient at log r = 12 in float16", measured=[found], expected=[0.0])
    # In bfloat16 σ(4.75) has one digit left of 1 − σ. The log ratio itself is exact.
    at, on = (
        gradient(subject, make_batch([[x]], [1.0], dtype=torch.bfloat16), tau=(1.0, 1.0)).item() for x in (1.75, 0.0)
    )
    expected = [sapo_weight(math.exp(1.75), 1.0)]
    quantity = "ω at log r = 1.75, from log-probabilities in bfloat16"
    yield Comparison(quantity=quantity, measured=[over(at, on)], expected=expected, tolerance=0.004)


CHECKS = (
    Check(
        name="sign",
        title="The loss is minimised",
        harm="A loss of the wrong sign unlearns: rewards fall from the first update.",
        compare=_sign,
    ),
    Check(
        name="scale",
        title="On-policy the gradient is −A: the factor 4/τ is there",
        harm="Without 4/τ every gradient is multiplied by τ/4: a change of τ changes the learning rate, too.",
        compare=_scale,
    ),
    Check(
        name="advantage",
        title="The gradient is proportional to the advantage",
        harm="Without A bad responses are reinforced like good ones, with A² too. Rewards stall while the loss falls.",
        compare=_advantage,
    ),
    Check(
        name="zero_advantage",
        title="A = 0 contributes nothing",
        harm="Groups with equal rewards push the policy, though they say nothing: it drifts on tasks that it has solved.",
        compare=_zero_advantage,
    ),
    Check(
        name="sequence_mean",
        title="Each response counts the same, whatever its length",
        harm="A mean over all tokens lets long responses outweigh short ones; lengths drift, and results differ from the paper's.",
        compare=_sequence_mean,
    ),
    Check(
        name="token_ratio",
        title="Each token passes its own gate",
        harm="With the ratio of a whole response, outliers hide in the mean, and one response is damped or kept as a whole.",
        compare=_token_ratio,
    ),
    Check(
        name="gate",
        title="The gate takes part in the gradient, r · sech²(τ (r − 1) / 2)",
        harm="A detached gate grows from 2 to 4 instead of falling to 0: far tokens pull hardest, and off-policy runs collapse.",
        compare=_gate,
    ),
    Check(
        name="temperatures_read",
        title="Both temperatures are read",
        harm="An option that nobody reads makes a sweep of τ measure noise: all its curves agree.",
        compare=_temperatures_read,
    ),
    Check(
        name="temperatures_by_sign",
        title="τ_pos belongs to A > 0, τ_neg to A < 0",
        harm="Exchanged temperatures damp negative advantages less. The paper's ablation is unstable there.",
        compare=_temperatures_by_sign,
    ),
    Check(
        name="no_clip",
        title="No clip beside the gate",
        harm="A clip removes the gradient that the soft gate keeps: beyond 1 ± ε it is GRPO again.",
        compare=_no_clip,
    ),
    Check(
        name="overflow",
        title="A huge log ratio is harmless",
        harm="exp overflows, and 0 · inf is NaN in the backward pass: one token destroys all weights.",
        compare=_overflow,
    ),
    Check(
        name="outside_mask",
        title="Values outside the mask change nothing",
        harm="A mask that is multiplied in at the end lets infinities of the padding through, as 0 · inf = NaN.",
        compare=_outside_mask,
    ),
    Check(
        name="old_detached",
        title="No gradient flows into the old log-probabilities",
        harm="On-policy both gradients cancel: the first update after a rollout does nothing, and the gradient norm is 0.",
        compare=_old_detached,
    ),
    Check(
        name="empty_sequence",
        title="A response without tokens contributes nothing",
        harm="Its mean is 0 / 0: a response that is masked as a whole makes the loss NaN.",
        compare=_empty_sequence,
    ),
    Check(
        name="microbatches",
        title="The microbatches of a minibatch add up",
        harm="A mean of microbatch means weighs responses by the split: results change with memory and number of ranks.",
        compare=_microbatches,
    ),
    Check(
        name="low_precision",
        title="Half precision is left before the ratio",
        harm="exp(12) overflows in float16, and bfloat16 cannot resolve 1 − σ: far gradients are NaN, or off by a tenth.",
        compare=_low_precision,
    ),
)
