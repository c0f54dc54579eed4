"""Runs of several modes, against themselves resumed half way: to the last digit, or sample for sample where engines run ahead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl import train
from rl.config import EvalConfig, LearnerConfig, LoraConfig, OptimizerConfig, RolloutConfig, TrainConfig
from rollout import Completion, Prompt
from rollout.data.mixture import mixture, open_stream
from rollout.types import Done, Observation

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("cluster")]

HALF, STEPS = 3, 6
UNEQUAL = ("time/", "sync/", "memory/", "rollout/tokens_per_second")
"""Metrics that tell of the machine, not of the policy."""


def prompts_of(task: str, count: int) -> list[Prompt]:
    return [
        Prompt(
            id=f"{task}{number}",
            messages=[{"role": "user", "content": f"{task} {number}?"}],
            answer=str(number),
            task=task,
        )
        for number in range(count)
    ]


PROMPTS = prompts_of("sum", 64)


def share_of_digits(prompt: Prompt, completion: Completion) -> float:
    return sum(letter.isdigit() for letter in completion.text) / (1 + len(completion.text))


def any_digit(prompt: Prompt, completion: Completion) -> float:
    return float(any(letter.isdigit() for letter in completion.text))


class AsksTwice:
    """Asks again after the first turn; the reward is the share of digits in both."""

    def reset(self, prompt: Prompt) -> Prompt:
        self.texts: list[str] = []
        return prompt

    def step(self, completion: Completion) -> Observation | Done:
        self.texts.append(completion.text)
        if len(self.texts) == 1:
            return Observation(text="Again?")
        return Done()


def run(policy: Path, run_dir: Path, changes: Mapping[str, Any], **arguments: Any) -> list[dict[str, Any]]:
    """Trains and returns the metrics of each step that do not tell of the machine."""
    config = TrainConfig(
        model=str(policy),
        run_dir=run_dir,
        steps=STEPS,
        prompts_per_step=4,
        group_size=4,
        num_minibatches=2,
        checkpoint_every=HALF,
        samples_every=1,
        wandb="disabled",
        check_references=False,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_updates=1),
        learner=LearnerConfig(dtype="float32", threads=1),
        rollout=RolloutConfig(dtype="float32", max_tokens=8, max_model_len=256),
        eval=EvalConfig(num_prompts=0),
    )
    train(replace(config, **changes), **{"prompts": PROMPTS, "reward": share_of_digits} | arguments)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(UNEQUAL)} for row in rows]


def trained_prompts(run_dir: Path, *steps: int) -> list[list[str]]:
    """Returns the ids of each step's prompts."""
    files = [run_dir / "samples" / f"step_{step:06d}.jsonl" for step in steps]
    return [[json.loads(line)["prompt_id"] for line in file.read_text().splitlines()] for file in files]


MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixed tasks, refilled groups, adapters, new epochs": (
        {"refill_prompts": 4, "lora": LoraConfig(rank=4)},
        {
            "prompts": mixture({"sum": (prompts_of("sum", 7), 3), "word": (prompts_of("word", 3), 1)}),
            "reward": any_digit,
        },
    ),
    "episodes": ({}, {"environment": AsksTwice}),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_second_half_of_a_run_is_that_of_one_that_starts_from_its_checkpoint(
    mode: str, dense_policy: Path, tmp_path: Path
):
    changes, arguments = MODES[mode]
    whole = run(dense_policy, tmp_path / "whole", changes, **arguments)
    checkpoint = tmp_path / "whole" / "checkpoints" / f"step_{HALF}"
    resumed = run(dense_policy, tmp_path / "resumed", {**changes, "resume": str(checkpoint)}, **arguments)
    assert [row["step"] for row in whole] == list(range(1, STEPS + 1))
    assert any(row["policy/grad_norm"] > 0 for row in whole[HALF:]), "a policy that does not change proves nothing"
    assert resumed == whole[HALF:]
    second = range(HALF + 1, STEPS + 1)
    assert trained_prompts(tmp_path / "resumed", *second) == trained_prompts(tmp_path / "whole", *second)


@pytest.mark.parametrize("in_flight", ["keep", "requeue"])
def test_a_run_whose_engines_are_ahead_trains_on_each_prompt_once_and_in_order(
    in_flight: str, dense_policy: Path, tmp_path: Path
):
    rollout = RolloutConfig(dtype="float32", max_tokens=8, max_model_len=256, in_flight=in_flight)
    ahead = {"max_staleness": 2, "rollout": rollout}
    run(dense_policy, tmp_path / "run", {**ahead, "steps": HALF})
    rows = run(dense_policy, tmp_path / "run", {**ahead, "resume": "auto"})
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(row["rollout/staleness"] for row in rows) > 0, "no engine was ahead"
    stream = open_stream(PROMPTS, batch_size=4, seed=0)
    in_order = [[prompt.id for prompt in stream.next_batch()] for _ in range(STEPS)]
    assert trained_prompts(tmp_path / "run", *range(1, STEPS + 1)) == in_order
    assert len({name for step in in_order for name in step}) == 4 * STEPS
