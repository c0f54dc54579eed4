"""Prompts in, completions out."""

from rollout.types import Completion, Group, Prompt, Sampling

__all__ = ["Completion", "Group", "Prompt", "Sampling"]
