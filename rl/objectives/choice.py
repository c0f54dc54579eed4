"""The named objectives, and the one that a config chooses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from rewards.loading import load_function
from rl.config import Aggregation, LearningOptions
from rl.objectives.aggregation import aggregated_loss
from rl.objectives.clipped import (
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    grpo_loss,
    gspo_loss,
    policy_gradient_loss,
)
from rl.objectives.contract import Objective, accepted
from rl.objectives.soft import (
    ARCTAN,
    ERF,
    LOG_RATIO,
    SOFTSIGN,
    of_sequence,
    on_the_favoured_side,
    soft_gate_loss,
    sspo_loss,
    vespo_loss,
)
from rl.sapo import sapo_loss

OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "sapo": sapo_loss,
        # A tenth of the gradient is left where PPO's clip of .2, or GSPO's bounds, would cut: at 3.6 / τ.
        "sapo_one_sided": partial(soft_gate_loss, gated=on_the_favoured_side, tau_pos=20.0, tau_neg=21.0),
        "sapo_sequence": partial(
            soft_gate_loss, gated=on_the_favoured_side, level=of_sequence, tau_pos=9000.0, tau_neg=12000.0
        ),
        "sapo_log": partial(soft_gate_loss, distance=LOG_RATIO),
        "sapo_erf": partial(soft_gate_loss, shape=ERF),
        "sapo_arctan": partial(soft_gate_loss, shape=ARCTAN),
        "sapo_softsign": partial(soft_gate_loss, shape=SOFTSIGN),
        "sspo": sspo_loss,
        "grpo": grpo_loss,
        "gspo": gspo_loss,
        "dapo": dapo_loss,
        "dr_grpo": dr_grpo_loss,
        "cispo": cispo_loss,
        "vespo": vespo_loss,
        "policy_gradient": policy_gradient_loss,
    }
)
"""Name → objective."""

OWN_AGGREGATION: Mapping[str, Aggregation] = MappingProxyType(
    {
        **dict.fromkeys(OBJECTIVES, "sequence_mean"),
        **dict.fromkeys(("dapo", "cispo", "vespo"), "token_mean"),
        "dr_grpo": "constant_length",
    }
)
"""Name → the denominator that the objective has by itself."""


CONSTANTS = ("tau_pos", "tau_neg", "clip_low", "clip_high")
"""Options that are keyword arguments of the objectives that read them; one that is not set keeps the objective's own default."""


def choose_objective(options: LearningOptions) -> Objective:
    """Returns the named objective, or the function of a file, bound to the options that it takes.

    Raises:
        ValueError: There is no such function, or the objective lacks an option that is set.
    """
    named = ":" not in options.objective  # `check_config` has checked the name
    objective = OBJECTIVES[options.objective] if named else load_function(options.objective, "objective")
    chosen = {name: value for name in CONSTANTS if (value := getattr(options, name)) is not None}
    if unread := chosen.keys() - accepted(objective, chosen).keys():
        values = " and ".join(f"{name} = {chosen[name]:g}" for name in CONSTANTS if name in unread)
        raise ValueError(f"objective {options.objective!r} does not take {values}: leave it out")
    bound = partial(objective, **accepted(objective, {**chosen, "max_tokens": options.rollout.max_tokens}))
    return _aggregated(bound, options) if options.aggregation is not None else bound


def _aggregated(objective: Objective, options: LearningOptions) -> Objective:
    """Returns the objective with the denominator that the options choose.

    Raises:
        ValueError: Its own denominator is not known.
    """
    assert options.aggregation is not None, "called for a chosen denominator"
    own = OWN_AGGREGATION.get(options.objective)
    if own is None:
        raise ValueError(
            f"aggregation = {options.aggregation} with objective {options.objective!r}, whose denominator is its own: divide in "
            "that function, and leave the option out"
        )
    return partial(
        aggregated_loss,
        objective=objective,
        own=own,
        wanted=options.aggregation,
        max_tokens=options.rollout.max_tokens,
    )
