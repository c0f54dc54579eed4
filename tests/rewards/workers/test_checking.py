"""Whatever a reward does, it becomes a score of finite floats, or an error that says what and where."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from rewards.types import Score
from rewards.workers.call import call_verifier, to_score
from rollout import Completion, Prompt

PROMPT = Prompt(id="digits-12", messages=[])


def my_reward(prompt: Prompt, completion: Completion) -> float:
    return {"a": 1.0}[completion.text]


@pytest.mark.parametrize("value", [1, 1.0, True, np.float32(1), np.int64(1), np.bool_(True), Fraction(2, 2)])
def test_every_real_number_is_a_reward(value: object) -> None:
    score = to_score(value, my_reward, PROMPT)
    assert score == Score(reward=1.0)
    assert type(score.reward) is float


def test_the_numbers_of_a_score_become_floats() -> None:
    score = to_score(Score(reward=np.float64(1), parts={"accuracy": np.bool_(True)}), my_reward, PROMPT)
    assert score == Score(reward=1.0, parts={"accuracy": 1.0})
    assert {type(score.reward), type(score.parts["accuracy"])} == {float}


def test_a_score_with_an_error_has_no_reward() -> None:
    assert to_score(Score(reward=math.nan, error="no judge"), my_reward, PROMPT) == Score(
        reward=0.0, error="no judge", failed="my_reward"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("yes", "returned 'yes' (str)"),
        (None, "returned None (NoneType)"),
        (math.nan, "returned nan (float)"),
        (-math.inf, "returned -inf (float)"),
        (1j, "returned 1j (complex)"),
        ([1.0], "returned [1.0] (list)"),
        (Decimal(1), "returned Decimal('1') (Decimal)"),
        (Score(reward=math.nan), "returned nan (float) as reward"),
        (Score(reward=1.0, parts={"format": "good"}), "returned 'good' (str) as part 'format'"),
    ],
)
def test_anything_else_is_refused_with_name_prompt_and_value(value: object, told: str) -> None:
    with pytest.raises(ValueError) as refusal:
        to_score(value, my_reward, PROMPT)
    message = f"reward 'my_reward' {told} for prompt 'digits-12'; return a finite float or a Score"
    assert str(refusal.value) == message
    assert call_verifier(lambda prompt, completion: value, PROMPT, Completion(text="")).error == (
        message.replace("my_reward", "<lambda>")
    )


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ValueError, match="returned 1000"):
        to_score(10**400, my_reward, PROMPT)


def test_an_exception_is_told_with_its_place_in_the_users_code() -> None:
    line = my_reward.__code__.co_firstlineno + 1
    told = f"reward 'my_reward' raised KeyError: 'b' for prompt 'digits-12' ({__file__}:{line})"
    assert call_verifier(my_reward, PROMPT, Completion(text="b")) == Score(reward=0.0, error=told, failed="my_reward")
    assert call_verifier(my_reward, PROMPT, Completion(text="a")) == Score(reward=1.0)


def test_the_place_is_where_the_user_called_a_library_and_not_inside_it() -> None:
    def uses_numpy(prompt: Prompt, completion: Completion) -> float:
        return float(np.linalg.inv(np.zeros((2, 2)))[0, 0])

    error = call_verifier(uses_numpy, PROMPT, Completion(text="")).error
    line = uses_numpy.__code__.co_firstlineno + 1
    assert (
        error == f"reward 'uses_numpy' raised LinAlgError: Singular matrix for prompt 'digits-12' ({__file__}:{line})"
    )


def test_a_message_of_many_lines_becomes_one_short_line() -> None:
    def shouts(prompt: Prompt, completion: Completion) -> float:
        raise RuntimeError("no\n" * 1000)

    error = call_verifier(shouts, PROMPT, Completion(text="")).error
    assert error is not None and "\n" not in error and len(error) < 600
