"""Samples in, an updated policy out: the learner, its ranks and its optimizer."""

from rl.learner.learner import Learner

__all__ = ["Learner"]
