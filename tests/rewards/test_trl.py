"""Reward functions as TRL's documentation shows them, called as TRL calls them."""

import numpy as np
import pytest
import torch

from rewards.trl import from_trl
from rewards.workers.call import score_completions
from rollout import Completion, Prompt

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]
PROMPT = Prompt(id="p-1", messages=MESSAGES, images=["an image"], answer="5", columns={"ground_truth": "five"})
COMPLETIONS = [
    Completion(text=text, token_ids=np.arange(n, dtype=np.int32)) for n, text in enumerate(["5", "five", "6"])
]


def rewards_of(function, **options: bool) -> list[float]:
    scores = score_completions(from_trl(function, **options), PROMPT, COMPLETIONS)
    assert [score.error for score in scores] == [None] * 3
    return [score.reward for score in scores]


def test_completions_are_conversations_or_text() -> None:
    def talks(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    def reads(completions, prompts):
        return [
            float(completion == "5" and prompt == "How many?")
            for completion, prompt in zip(completions, prompts, strict=True)
        ]

    assert rewards_of(talks) == [1.0, 4.0, 1.0]
    assert rewards_of(reads, conversational=False) == [1.0, 0.0, 0.0]


def test_columns_come_by_name_one_for_each_completion() -> None:
    def matches(prompts, completions, ground_truth, answer):
        assert prompts == [MESSAGES] * 3 and answer == ["5"] * 3
        return [c[0]["content"] == truth for c, truth in zip(completions, ground_truth, strict=True)]

    def by_tokens(completion_ids, images, **kwargs):
        assert images == [["an image"]] * 3
        of_trainer = {"trainer_state", "log_metric", "log_extra"}
        assert kwargs.keys() == {"prompts", "completions", "image", "answer", "task", "ground_truth"} | of_trainer
        return [len(ids) for ids in completion_ids]

    assert rewards_of(matches) == [0.0, 1.0, 0.0]
    assert rewards_of(by_tokens) == [0.0, 1.0, 2.0]


def test_none_counts_nothing_and_async_is_awaited() -> None:
    async def some(completions, **kwargs):
        return [None if c[0]["content"] == "6" else 1.0 for c in completions]

    assert rewards_of(some) == [1.0, 1.0, 0.0]


def test_what_goes_wrong_names_the_function() -> None:
    def needs(prompts, completions, solution):
        return [1.0] * len(completions)

    [first, *_] = score_completions(from_trl(needs), PROMPT, COMPLETIONS)
    assert "reward 'needs' raised TypeError" in str(first.error) and "solution" in str(first.error)
    with pytest.raises(ValueError, match="from_trl takes a function of"):
        from_trl("accuracy_reward")


def test_what_a_function_logs_becomes_parts_and_the_trainers_step_is_that_of_the_weights() -> None:
    def logging(prompts, completions, image, trainer_state, log_metric, log_extra, **columns):
        log_metric("step", trainer_state.global_step)
        log_extra("length", [len(completion[0]["content"]) for completion in completions])
        log_extra("words", [completion[0]["content"] for completion in completions])  # texts are no metrics
        return [float(picture is not None) for picture in image]

    prompt = Prompt(id="a", messages=[{"role": "user", "content": "?"}], images=["a picture", "another"])
    completions = [Completion(text=text, policy_version=7) for text in ("ab", "abcd")]
    scores = score_completions(from_trl(logging), prompt, completions)
    assert [score.reward for score in scores] == [1.0, 1.0]
    assert [dict(score.parts) for score in scores] == [{"step": 7.0, "length": 2.0}, {"step": 7.0, "length": 4.0}]


def test_scalars_of_torch_and_numpy_are_numbers() -> None:
    def scalars(completions, **columns):
        return [torch.tensor(0.5), np.float32(0.25), True, None]

    prompt = Prompt(id="a", messages=[{"role": "user", "content": "?"}])
    scores = score_completions(from_trl(scalars), prompt, [Completion(text=text) for text in "abcd"])
    assert [(score.reward, score.error) for score in scores] == [(0.5, None), (0.25, None), (1.0, None), (0.0, None)]
