"""Recipes that run in the test's own process. With the fixture `cluster` they join a cluster of Ray that runs already."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

import pytest

ONE_THREAD = "--learner.threads 1 --cold-start.threads 1"
"""Options for busy cores, on which threads that wait for one another take a small policy's learner several times as long."""


def run_here(name: str, words: Sequence[str]) -> None:
    """What `python -m recipes.NAME WORDS` does, without a process that has torch and Ray to import and to start.

    Args:
        name: The recipe.
        words: The command line.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        patch.setenv("RL_TRACEBACK", "1")
        runpy.run_module(f"recipes.{name}", run_name="__main__", alter_sys=True)
