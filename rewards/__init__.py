"""Verifiers: plain functions of a prompt and a completion that return a number or a `Score`.

Everything here imports in milliseconds; what a verifier needs beyond that, it imports when it is first called.
"""

from rewards.box_iou import box_iou
from rewards.clock_time import clock_time
from rewards.code_tests import code_tests
from rewards.compose import by_task, first_readable, gated, of_group, weighted
from rewards.count import count
from rewards.exact import exact
from rewards.format_tags import format_tags
from rewards.instruction_following import instruction_following
from rewards.json_format import json_format
from rewards.judge import judge
from rewards.language_matches import language_matches
from rewards.length_penalty import length_penalty
from rewards.math_answer import math_answer
from rewards.multiple_choice import multiple_choice
from rewards.numeric import numeric
from rewards.point_in_box import point_in_box
from rewards.repetition_penalty import repetition_penalty
from rewards.table_similarity import table_similarity
from rewards.text_similarity import text_similarity
from rewards.tool_calls_target import tool_calls_target
from rewards.trl import from_trl
from rewards.types import Score, Verifier

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
]
