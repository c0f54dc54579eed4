"""Processes that call a reward function."""
