"""Thinking with images: the policy requests parts of an image, turn by turn, before it answers.

Three rewards, as in Qwen3-VL (arXiv 2511.21631): the answer's accuracy, the reasoning over the turns (by an LLM judge), and the
number of tool calls compared with the question's need. Without the third, policies collapse to one call.

Small: digits in fine print, legible only in a tile that the policy requests; without --judge-url there is no judge. With a preset:
your own rows with `image`, `question`, `answer`, `tool_calls`, and Qwen3-VL's own tool format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from rewards import Score, judge, tool_calls_target, weighted
from rewards.judge import ACCURACY
from rewards.types import Verifier
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, OptimizerConfig, RolloutConfig
from rl.hardware.presets import PresetConfig
from rollout import Completion, Prompt

REASONING = (
    "1 if every look at a part of the picture has a reason that was given before, and what was seen is used in what follows; "
    "0 if looks are without a reason, or the answer does not rest on them"
)
SYSTEM = """You may look closer before you answer. To see a part of an image enlarged, reply with

<tool_call>
{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [left, top, right, bottom]}}
</tool_call>

where the box is in thousandths of the image's width and height. Say before each call what you look for. When you know the answer,
give it without a call."""


@dataclass(frozen=True, kw_only=True)
class ThinkingWithImages(PresetConfig):
    """SAPO on questions about small details."""

    run_dir: Path = Path("runs/thinking_with_images")
    """Folder for config, metrics, samples and checkpoints."""
    steps: int = 100
    """Steps: each one generates, scores, learns and syncs."""
    data: str | None = None
    """With a preset: a hub name, folder or file with columns image, question, answer and tool_calls."""
    judge_url: str | None = None
    """An OpenAI-compatible endpoint, such as http://localhost:8001/v1; default: no judge, and the answer must be the reference."""
    judge_model: str | None = None
    """The judge's model name there."""
    calls_weight: float = 0.2
    """Weight of the number of calls; the answer's is 1."""
    reasoning_weight: float = 0.3
    """Weight of the reasoning, with a judge."""
    cold_start: ColdStartConfig = ColdStartConfig(max_image_pixels=64 * 64)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4, decay_updates=200)
    rollout: RolloutConfig = RolloutConfig(
        dtype="float32",
        max_tokens=32,
        max_turn_tokens=4,
        max_turns=2,
        max_images=2,
        max_image_pixels=64 * 64,
        max_model_len=128,
    )
    eval: EvalConfig = EvalConfig(num_prompts=400)

    def large(self) -> Self:
        """Up to eight tool calls, each after a thought."""
        large = super().large()
        return replace(large, rollout=replace(large.rollout, max_turns=9, max_turn_tokens=2048, max_images=9))


def answer_is_right(prompt: Prompt, completion: Completion) -> float:
    """1 if the last turn is the answer."""
    return float(completion.text.strip() == str(prompt.answer))


def looked(prompt: Prompt, completion: Completion) -> Score:
    """1 if the policy called the tool; logged and not rewarded."""
    return Score(reward=float(any(turn.observation is not None for turn in completion.turns or ())))


def rewards_of(config: ThinkingWithImages) -> Verifier:
    """Accuracy, number of calls and, with a judge, reasoning.

    Raises:
        ValueError: Only one of judge_url and judge_model is given.
    """
    if (config.judge_url is None) != (config.judge_model is None):
        raise ValueError(
            f"judge_url = {config.judge_url} and judge_model = {config.judge_model}: give both, or neither"
        )
    accuracy: Verifier = answer_is_right
    if config.judge_url:
        axes = {"accuracy": ACCURACY, "reasoning": REASONING}
        weights = {"accuracy": 1.0, "reasoning": config.reasoning_weight}
        accuracy = judge(base_url=config.judge_url, model=config.judge_model, axes=axes, weights=weights)
    return weighted(
        {"answer": (accuracy, 1.0), "calls": (tool_calls_target, config.calls_weight), "looked": (looked, 0.0)}
    )


def large_prompt(row: Mapping[str, Any]) -> Prompt:
    """The question, after a description of the tool."""
    content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
    return Prompt(
        id="",
        messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}],
        images=[row["image"]],
        answer=row["answer"],
        task="thinking_with_images",
        columns={"tool_calls": row["tool_calls"]},
    )


def run(config: ThinkingWithImages) -> None:
    """Cold start of the small policy, then SAPO."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy
    from rollout.data.datasets import read_rows
    from rollout.data.prompts import prompts_from
    from rollout.environments import ZoomTool
    from rollout.tasks.fine_print import fine_print, half_informed, magnifier, to_prompt

    reward = rewards_of(config)
    if config.preset != "small":
        if config.data is None:
            raise ValueError("--data is needed with a preset: rows with columns image, question, answer and tool_calls")
        rows = prompts_from(read_rows(config.data), large_prompt)
        count = min(config.eval.num_prompts, len(rows) // 10)
        print_result(
            train(config, prompts=rows[count:], reward=reward, eval_prompts=rows[:count], environment=ZoomTool)
        )
        return
    prompts = prompts_from(fine_print("train"), to_prompt)
    held_out = prompts_from(fine_print("test", num_prompts=2000), to_prompt)
    config = with_start_policy(config, prompts, half_informed)
    print_result(train(config, prompts=prompts, reward=reward, eval_prompts=held_out, environment=magnifier))


if __name__ == "__main__":
    main(run, ThinkingWithImages, __doc__)
