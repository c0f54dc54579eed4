"""Prompts, completions, and the vLLM engines between them."""

from rollout.types import Completion, Done, Group, Observation, Prompt, Sampling, Turn, Video

__all__ = ["Completion", "Done", "Group", "Observation", "Prompt", "Sampling", "Turn", "Video"]
