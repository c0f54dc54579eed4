"""Before the start: every task has a prompt, a reward that works on it, and answers that this reward accepts."""

from __future__ import annotations

import pytest
from PIL import Image

from policies.small.qwen3_vl import small_processor
from rewards import by_task, exact, math_answer
from rewards.workers.runner import RewardRunner
from rl.preflight import Inputs, first_prompts, try_reward
from rollout import Prompt
from rollout.config import RolloutConfig
from rollout.data.mixture import Mixture, mixture
from rollout.rendering import limit_pixels

PICTURE = Image.new("RGB", (400, 200), "red")


def prompts(*answers: str) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=[], answer=answer) for i, answer in enumerate(answers)]


def two_tasks(**answers: list[str]) -> Mixture:
    return mixture({name: (prompts(*its), 1) for name, its in answers.items()})


def everything(prompt: Prompt) -> None:
    return None


def test_the_first_prompt_of_every_task_that_can_be_used_is_tried():
    mixed = two_tasks(sums=["1", "2"], colours=["red", "blue"])
    refuse = lambda prompt: "too long" if prompt.id == "colours/p0" else None  # noqa: E731
    assert [prompt.id for prompt in first_prompts(mixed, refuse)] == ["sums/p0", "colours/p1"]
    assert [prompt.id for prompt in first_prompts(prompts("1"), everything)] == ["p0"]


def test_a_task_without_a_usable_prompt_is_named_before_anything_starts():
    mixed = two_tasks(sums=["1"], colours=["red"])
    with pytest.raises(ValueError, match="no prompt of task 'colours' can be used: the warnings above name each row"):
        first_prompts(mixed, lambda prompt: "too long" if prompt.task == "colours" else None)
    with pytest.raises(ValueError, match="no prompt can be used: the warnings"):
        first_prompts(prompts("1"), lambda prompt: "too long")


def test_pictures_are_as_the_policy_sees_them_and_whole_for_an_environment_that_may_zoom():
    large = [Prompt(id="p", messages=[{"role": "user", "content": [{"type": "image"}]}], images=[PICTURE])]
    processor = limit_pixels(small_processor(), RolloutConfig(max_image_pixels=64 * 64))
    for environment, size in ((None, (64, 32)), (object, (400, 200))):
        inputs = Inputs(
            processor=processor, accept=everything, runner=None, make_environment=environment, rollout=RolloutConfig()
        )
        for prompts in (large, mixture({"task": (large, 1)})):
            [image] = inputs.as_seen(prompts)[0].images
            assert image.size == size


def test_the_reward_is_tried_on_every_task():
    mixed = two_tasks(sums=["1"], colours=["red"])
    with RewardRunner(by_task({"sums": math_answer})) as runner:
        with pytest.raises(ValueError, match="by_task has no reward for task 'colours'"):
            try_reward(runner, mixed, first_prompts(mixed, everything), references=False)


def test_references_that_no_response_can_match_are_found_unless_told_not_to_look():
    mixed = two_tasks(sums=["1", "2"], colours=["red", "blue", "green", "grey"])

    def only_numbers(prompt: Prompt, completion) -> float:
        return float(completion.text == prompt.answer and prompt.answer.isdigit())

    with RewardRunner(by_task({"sums": exact, "colours": only_numbers})) as runner:
        first = first_prompts(mixed, everything)
        try_reward(runner, mixed, first, references=False)
        with pytest.raises(ValueError, match="task 'colours': none of its first 4 reference answers earns a reward"):
            try_reward(runner, mixed, first, references=True)
