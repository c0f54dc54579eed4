"""Objectives besides SAPO, pure functions with `sapo_loss`'s signature, and the choice of one.

An objective takes `(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT)`. By keyword it takes the counts of the *whole* minibatch
that its mean divides by: `num_sequences` or `num_tokens`. So the losses of microbatches add up to the minibatch's for any split. It
returns a scalar to minimise and a dict of scalar metrics. Advantages are [B], or [B, T] if a teacher scores every token. A learner
calls it a second time, on-policy, to measure the weights of tokens.

Metrics of microbatches are merged by their names. `_min` and `_max` take the extreme. Others are means: over tokens; for
`_positive` and `_negative` over tokens with such an advantage; for `_variance` over sequences.
"""

from rl.objectives.choice import OBJECTIVES, OWN_AGGREGATION, choose_objective
from rl.objectives.clipped import (
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    grpo_loss,
    gspo_loss,
    policy_gradient_loss,
)
from rl.objectives.contract import COUNTS, Objective, accepted, check_objective
from rl.objectives.penalty import kl_penalty
from rl.objectives.soft import soft_gate_loss, sspo_loss, vespo_loss

__all__ = [
    "COUNTS",
    "OBJECTIVES",
    "OWN_AGGREGATION",
    "Objective",
    "accepted",
    "check_objective",
    "choose_objective",
    "cispo_loss",
    "dapo_loss",
    "dr_grpo_loss",
    "grpo_loss",
    "gspo_loss",
    "kl_penalty",
    "policy_gradient_loss",
    "soft_gate_loss",
    "sspo_loss",
    "vespo_loss",
]
