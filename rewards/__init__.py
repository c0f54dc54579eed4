"""Verifiers: plain functions of a prompt and a completion that return a number or a `Score`.

The package imports in milliseconds; a verifier imports its libraries when it is first called.
"""

from rewards.code.verifier import code_tests
from rewards.compose import by_task, first_readable, gated, of_group, weighted
from rewards.judge import judge
from rewards.trl import from_trl
from rewards.types import Score, Verifier
from rewards.verifiers.box_iou import box_iou
from rewards.verifiers.clock_time import clock_time
from rewards.verifiers.count import count
from rewards.verifiers.exact import exact
from rewards.verifiers.format_tags import format_tags
from rewards.verifiers.instruction_following import instruction_following
from rewards.verifiers.json_format import json_format
from rewards.verifiers.language_matches import language_matches
from rewards.verifiers.length_penalty import length_penalty
from rewards.verifiers.math_answer import math_answer
from rewards.verifiers.multiple_choice import multiple_choice, yes_no
from rewards.verifiers.numeric import numeric
from rewards.verifiers.point_in_box import point_in_box
from rewards.verifiers.repetition_penalty import repetition_penalty
from rewards.verifiers.table_similarity import table_similarity
from rewards.verifiers.text_similarity import text_similarity
from rewards.verifiers.tool_calls_target import tool_calls_target

__all__ = [
    "Score",
    "Verifier",
    "box_iou",
    "by_task",
    "clock_time",
    "code_tests",
    "count",
    "exact",
    "first_readable",
    "format_tags",
    "from_trl",
    "gated",
    "instruction_following",
    "json_format",
    "judge",
    "language_matches",
    "length_penalty",
    "math_answer",
    "multiple_choice",
    "numeric",
    "of_group",
    "point_in_box",
    "repetition_penalty",
    "table_similarity",
    "text_similarity",
    "tool_calls_target",
    "weighted",
    "yes_no",
]
