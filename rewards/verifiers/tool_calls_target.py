"""Number of tool calls, compared with the number that the question needs."""

from __future__ import annotations

from rewards.types import Score
from rollout.types import Completion, Prompt


def tool_calls_target(prompt: Prompt, completion: Completion) -> float | Score:
    """Rewards an episode by how near its number of tool calls is to `prompt.columns["tool_calls"]`.

    Without such a reward, policies fall back to one call, or to none (Qwen3-VL, arXiv 2511.21631). A call is a turn with a reply
    of the environment. The reward is 1 − |calls − target| / max(target, 1), and not below 0. Add it to a reward for the answer.

    Returns:
        From 0.0 to 1.0; a `Score` with an error where the row has no target, or no environment took part. A response without
        calls has 1.0 where the target is 0.
    """
    target = prompt.columns.get("tool_calls")
    if isinstance(target, bool) or not isinstance(target, int) or target < 0:
        message = f"tool_calls_target needs a column 'tool_calls', a whole number >= 0, and prompt {prompt.id!r} has {target!r}"
        return Score(reward=0.0, error=message)
    if completion.turns is None:
        message = f"tool_calls_target counts the calls of episodes, and prompt {prompt.id!r} was answered without an environment"
        return Score(reward=0.0, error=f"{message}; give train() one")
    calls = sum(turn.observation is not None for turn in completion.turns)
    return max(0.0, 1 - abs(calls - target) / max(target, 1))
