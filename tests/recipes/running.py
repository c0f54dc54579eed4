"""Recipes that run in the test's own process, on a cluster of Ray that several of them share."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import ray

ONE_THREAD = "--learner.threads 1 --cold-start.threads 1"
"""Options for busy cores, on which threads that wait for one another take a small policy's learner several times as long."""


@contextmanager
def shared_ray() -> Iterator[None]:
    """Ray on this machine as `train()` starts it; what runs meanwhile joins it."""
    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


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
