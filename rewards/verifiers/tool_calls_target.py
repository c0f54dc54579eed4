"""How many tools were called, against how many the question needs."""

from __future__ import annotations

from rewards.types import Score
from rollout.types import Completion, Prompt


def tool_calls_target(prompt: Prompt, completion: Completion) -> float | Score:
    """Rewards an episode for as many tool calls as `prompt.columns["tool_calls"]` says.

    Without such a reward, policies fall back to one call, or to none (Qwen3-VL, arXiv 2511.21631). A call is a turn that the
    environment answered. The reward is 1 − |calls − target| / max(target, 1), and not below 0; to be added to one for the answer.

    Returns:
        From 0.0 to 1.0; a `Score` with an error where the row has no target, or no environment took part. A response without
        calls has 1.0 where the target is 0.
    """
    target = prompt.columns.get("tool_calls")
    if isinstance(target, bool) or not isinstance(target, int) or target < 0:
        told = f"tool_calls_target needs a column 'tool_calls', a whole number >= 0, and prompt {prompt.id!r} has {target!r}"
        return Score(reward=0.0, error=told)
    if completion.turns is None:
        told = f"tool_calls_target counts the calls of episodes, and prompt {prompt.id!r} was answered without an environment"
        return Score(reward=0.0, error=f"{told}; give train() one")
    calls = sum(turn.observation is not None for turn in completion.turns)
    return max(0.0, 1 - abs(calls - target) / max(target, 1))
