"""Trying a reward before, or without, a run."""
