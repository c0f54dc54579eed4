"""The named objectives, and the one that a config chooses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from rewards.loading import load_function
from rl.config import Aggregation, LearningOptions, ObjectiveOptions
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
        "sapo_one_sided": partial(soft_gate_loss, gated=on_the_favoured_side),
        "sapo_sequence": partial(soft_gate_loss, gated=on_the_favoured_side, level=of_sequence),
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


def choose_objective(options: LearningOptions) -> Objective:
    """Returns the named objective, or the function of a file, bound to the options that it takes.

    Raises:
        ValueError: There is no such function, or the objective lacks an option that is set.
    """
    named = ":" not in options.objective  # `check_config` has checked the name
    objective = OBJECTIVES[options.objective] if named else load_function(options.objective, "objective")
    clips = {"clip_low": options.clip_low, "clip_high": options.clip_high}
    bounds = {name: value for name, value in clips.items() if value is not None}
    if extra := bounds.keys() - accepted(objective, bounds).keys():
        values = ", ".join(f"{name} = {bounds[name]:g}" for name in sorted(extra))
        raise ValueError(f"objective {options.objective!r} does not clip by {values}: leave it out")
    temperatures = {"tau_pos": options.tau_pos, "tau_neg": options.tau_neg}
    defaults = ObjectiveOptions()
    for name in temperatures.keys() - accepted(objective, temperatures).keys():
        if temperatures[name] != getattr(defaults, name):
            raise ValueError(
                f"objective {options.objective!r} has no gate with {name} = {temperatures[name]:g}: leave it out"
            )
    arguments = {**temperatures, "max_tokens": options.rollout.max_tokens, **bounds}
    bound = partial(objective, **accepted(objective, arguments))
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
