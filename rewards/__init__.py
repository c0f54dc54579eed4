"""Verifiers: plain functions of a prompt and a completion that return a number or a `Score`.

Everything here imports in milliseconds; what a verifier needs beyond numpy, it imports when it is first called.
"""

from rewards.compose import by_task, gated, of_group, weighted
from rewards.exact import exact
from rewards.math_answer import math_answer
from rewards.multiple_choice import multiple_choice
from rewards.types import Score, Verifier

__all__ = ["Score", "Verifier", "by_task", "exact", "gated", "math_answer", "multiple_choice", "of_group", "weighted"]
