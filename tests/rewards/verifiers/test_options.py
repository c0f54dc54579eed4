"""A verifier with options is made by a call, and is one without."""

import pickle

import cloudpickle
import pytest

from rewards.types import Verifier
from rewards.verifiers.options import with_options
from rollout import Completion, Prompt

PROMPT = Prompt(id="p-1", messages=[])


@with_options
def longer(*, than: int = 3) -> Verifier:
    """Rewards a long response."""
    if than < 0:
        raise ValueError(f"than must be >= 0, got {than}")

    def verify(prompt: Prompt, completion: Completion) -> float:
        return float(len(completion.text) > than)

    return verify


def test_without_a_call_it_has_its_defaults_and_with_one_its_options() -> None:
    four = Completion(text="four")
    assert (longer(PROMPT, four), longer()(PROMPT, four), longer(than=4)(PROMPT, four)) == (1.0, 1.0, 0.0)


def test_it_keeps_its_name_and_its_docstring() -> None:
    assert (longer.__name__, longer.__doc__) == ("longer", "Rewards a long response.")
    assert longer(than=1).__name__ == "longer"


def test_options_are_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="than must be >= 0, got -1"):
        longer(than=-1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'then'"):
        longer(then=1)


def test_it_travels_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(longer)) is longer
    assert cloudpickle.loads(cloudpickle.dumps(longer(than=4)))(PROMPT, Completion(text="four")) == 0.0
