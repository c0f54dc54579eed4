"""reasoning-gym's tasks as rows: equal seeds give equal items, and none is in both splits."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from rewards import math_answer
from rollout import Completion
from rollout.data.prompts import prompts_from
from rollout.tasks.text_tasks import text_task, to_prompt

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("reasoning_gym", reason="an extra, for it needs a C compiler")


def test_answers_are_right_and_the_verifier_accepts_them():
    prompts = prompts_from(text_task("chain_sum", "test", num_prompts=400, **SMALL), to_prompt)
    assert 20 <= len(prompts) <= 60  # a tenth
    for prompt in prompts:
        expression = prompt.messages[0]["content"][0]["text"].rpartition(":")[2].rstrip("= ")
        left, sign, right = expression.split()
        assert int(prompt.answer) == int(left) + (int(right) if sign == "+" else -int(right))
        assert math_answer(prompt, Completion(text=prompt.answer)) == 1.0
    assert {prompt.task for prompt in prompts} == {"chain_sum"}
    assert not prompts[0].images


def test_no_question_is_in_both_splits_under_any_seed_nor_twice_in_one():
    drawn = {
        (split, seed): text_task("chain_sum", split, num_prompts=2000, seed=seed, **SMALL)["question"][:]
        for split in ("train", "test")
        for seed in (0, 1)
    }
    assert all(len(set(questions)) == len(questions) > 100 for questions in drawn.values())
    for seed in (0, 1):
        for other in (0, 1):
            assert not set(drawn["train", seed]) & set(drawn["test", other])


def test_a_split_without_items_is_refused():
    with pytest.raises(
        ValueError, match="of 1 items of task 'chain_sum' none is left for split '(train|test)': raise num_"
    ):
        for split in ("train", "test"):  # one item is in one of them
            text_task("chain_sum", split, num_prompts=1, **SMALL)


def test_equal_seeds_give_equal_items_and_others_give_others():
    one, same, other = (text_task("chain_sum", "train", num_prompts=30, seed=seed)["question"][:] for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "chain_sum", "split": "dev"}, "split must be 'train' or 'test', got 'dev'"),
        ({"name": "no_such_task", "split": "train"}, "reasoning-gym cannot make 'no_such_task'"),
        ({"name": "chain_sum", "split": "train", "min_terms": 5, "max_terms": 2}, "cannot make 'chain_sum' with"),
        ({"name": "chain_sum", "split": "train", "num_prompts": 0}, "num_prompts must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        text_task(**{"num_prompts": 5, **arguments})


def test_without_reasoning_gym_the_remedy_is_told(monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "reasoning_gym":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="'chain_sum' needs reasoning-gym: `pip install reasoning-gym`"):
        text_task("chain_sum", "train", num_prompts=5)
