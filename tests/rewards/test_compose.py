"""Rewards made of rewards show their parts and say which of them failed."""

import pytest

from rewards import (
    Score,
    by_task,
    exact,
    first_readable,
    gated,
    math_answer,
    multiple_choice,
    numeric,
    of_group,
    weighted,
)
from rewards.types import UNREAD
from rewards.workers.call import score_completions
from rollout import Completion, Prompt

PROMPT = Prompt(id="digits-12", messages=[], answer="17", task="sums")


def brevity(prompt: Prompt, completion: Completion) -> float:
    return 1 / len(completion.text)


def test_the_sum_is_weighted_and_the_parts_are_not() -> None:
    reward = weighted({"accuracy": (exact, 1.0), "brevity": (brevity, 0.5)})
    score = reward(PROMPT, Completion(text="17"))
    assert score == Score(reward=1.0 + 0.5 * 0.5, parts={"accuracy": 1.0, "brevity": 0.5})


def test_the_parts_of_a_part_stand_under_its_name() -> None:
    form = weighted({"brevity": (brevity, 2.0), "nothing": (lambda prompt, completion: 0, 1.0)})
    score = weighted({"accuracy": (exact, 1), "form": (form, -1)})(PROMPT, Completion(text="1234"))
    parts = {"accuracy": 0.0, "form": 0.5, "form/brevity": 0.25, "form/nothing": 0.0}
    assert score == Score(reward=-0.5, parts=parts)


def test_a_part_that_raises_leaves_no_verdict_and_is_named() -> None:
    reward = weighted({"accuracy": (exact, 1.0), "brevity": (brevity, 0.5)})
    score = reward(PROMPT, Completion(text=""))
    assert isinstance(score, Score)
    line = brevity.__code__.co_firstlineno + 1
    told = f"reward 'brevity' raised ZeroDivisionError: division by zero for prompt 'digits-12' ({__file__}:{line})"
    assert score == Score(
        reward=0.0, parts={"accuracy": 0.0}, error=f"part 'brevity': {told}", failed="brevity/brevity"
    )


def test_a_part_with_an_error_of_its_own_or_a_bad_value_is_named_too() -> None:
    nested = weighted({"outer": (weighted({"inner": (lambda prompt, completion: "yes", 1.0)}), 1.0)})
    error = nested(PROMPT, Completion(text="17")).error
    assert error is not None and error.startswith("part 'outer': part 'inner': reward '<lambda>' returned 'yes' (str)")


@pytest.mark.parametrize("part", [exact, (exact,), ("exact", 1.0), (exact, "1.0")])
def test_a_part_that_is_no_pair_of_function_and_number_is_refused(part: object) -> None:
    with pytest.raises(ValueError, match=r"part 'accuracy' of weighted must be a pair \(function, weight\), got "):
        weighted({"accuracy": part})


def test_no_parts_and_no_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        weighted({})
    with pytest.raises(ValueError, match="at least one task"):
        by_task({})
    with pytest.raises(ValueError, match="the reward of task 'sums' must be a function, got 1"):
        by_task({"sums": 1})


def test_each_task_has_its_own_reward() -> None:
    reward = by_task({"sums": exact, "length": brevity})
    assert reward(PROMPT, Completion(text="17")) == 1.0
    assert reward(Prompt(id="1", messages=[], task="length"), Completion(text="1234")) == 0.25


def test_an_unknown_task_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"by_task has no reward for task 'default', only for \['length', 'sums'\]"):
        by_task({"sums": exact, "length": brevity})(Prompt(id="1", messages=[]), Completion(text=""))


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [("B", "B", "C"), ("17", r"\boxed{17}", "B"), ("blue", "Blue", "red"), ("1 or 2", "1 or 2", "1")],
)
def test_the_first_that_can_read_the_reference_has_the_verdict(answer: str, right: str, wrong: str) -> None:
    reward = first_readable(multiple_choice, numeric, exact)
    prompt = Prompt(id="1", messages=[], answer=answer)
    assert [reward(prompt, Completion(text=text)) for text in (right, wrong)] == [1.0, 0.0]


def test_where_none_can_read_the_reference_the_last_one_says_why() -> None:
    score = first_readable(multiple_choice, math_answer)(
        Prompt(id="1", messages=[], answer="a dog"), Completion(text="x")
    )
    assert isinstance(score, Score) and score.failed == "math_answer"
    assert score.error is not None and score.error.startswith("math_answer cannot read the answer 'a dog'")


def test_a_reward_that_sees_siblings_may_stand_in() -> None:
    ranks = of_group(lambda prompt, completions: [float(place) for place in range(len(completions))])
    reward = first_readable(numeric, ranks)
    completions = [Completion(text="7"), Completion(text="8")]
    prompts = [Prompt(id="1", messages=[], answer=answer) for answer in ("8", "eight")]
    assert [[score.reward for score in score_completions(reward, prompt, completions)] for prompt in prompts] == [
        [0, 1],
        [0, 1],
    ]
    prompts = [Prompt(id="1", messages=[], answer="7")]
    assert [score.reward for score in score_completions(reward, prompts[0], completions)] == [1, 0]


def digits(prompt: Prompt, completion: Completion) -> float:
    return float(completion.text == prompt.answer) if completion.text.isdecimal() else UNREAD


def always(prompt: Prompt, completion: Completion) -> float:
    return 0.5


def test_a_response_that_cannot_be_read_goes_to_the_next_verifier_where_that_is_asked_for() -> None:
    completions = [Completion(text=text) for text in ("17", "18", "seventeen")]
    for responses, rewards in ((False, [1.0, 0.0, 0.0]), (True, [1.0, 0.0, 0.5])):
        scores = score_completions(first_readable(digits, always, responses=responses), PROMPT, completions)
        assert [score.reward for score in scores] == rewards
        assert [score.unread for score in scores] == [False, False, not responses]


def test_an_unread_response_stays_one_in_sums_and_behind_gates() -> None:
    unread = Completion(text="seventeen")
    for reward in (weighted({"right": (digits, 1.0), "some": (always, 0.2)}), gated(always, digits, at_least=0.5)):
        [score] = score_completions(reward, PROMPT, [unread])
        assert score.unread
    [score] = score_completions(by_task({"sums": digits}), PROMPT, [unread])
    assert score == Score(reward=0.0, unread=True) and 0.5 * digits(PROMPT, unread) + 1 == 1.0


def test_first_readable_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="first_readable needs at least one reward, such as math_answer, got none"):
        first_readable()
    with pytest.raises(ValueError, match="a reward of first_readable must be a function, got 'exact'"):
        first_readable("exact")  # type: ignore[arg-type]
