"""A verifier with options is made by a call, and is one without."""

import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle
import pytest

import rewards
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


def test_an_unknown_option_is_named_with_the_one_that_may_be_meant() -> None:
    with pytest.raises(ValueError, match=r"^longer has no option 'then'; did you mean 'than'\?$"):
        longer(then=1)
    with pytest.raises(ValueError, match=r"^box_iou has no option 'iou'; give 'threshold'$"):
        rewards.box_iou(iou=0.5)
    with pytest.raises(ValueError, match="longer takes a prompt and a completion, or options by name, got 1 values"):
        longer(4)


@with_options
def of_all_kinds(
    *,
    share: float | None = None,
    names: Sequence[str] = (),
    sizes: tuple[int, ...] = (),
    pair: tuple[str, float] = ("a", 1.0),
    weights: Mapping[str, float] = {},  # only read
    anything: Any = None,
) -> Verifier:
    """Takes options and never looks at them."""
    return lambda prompt, completion: 0.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": "0.5"}, "share of of_all_kinds must be a number or None, got '0.5' (str)"),
        ({"share": True}, "share of of_all_kinds must be a number or None, got True (bool)"),
        ({"names": "cat"}, "names of of_all_kinds must be a list of which each is a text, got 'cat' (str)"),
        ({"names": ["cat", 7]}, "names of of_all_kinds must be a list of which each is a text, got ['cat', 7] (list)"),
        ({"sizes": (1, 2.5)}, "sizes of of_all_kinds must be a tuple (a whole number, ...), got (1, 2.5) (tuple)"),
        ({"sizes": 3}, "sizes of of_all_kinds must be a tuple (a whole number, ...), got 3 (int)"),
        ({"pair": ("a",)}, "pair of of_all_kinds must be a tuple (a text, a number), got ('a',) (tuple)"),
        ({"weights": {"a": "1"}}, "weights of of_all_kinds must be a mapping from a text to a number, got {'a': '1'} (dict)"),
        ({"weights": None}, "weights of of_all_kinds must be a mapping from a text to a number, got None (NoneType)"),
    ],
)  # fmt: skip
def test_a_value_of_a_wrong_type_is_named_with_what_it_must_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        of_all_kinds(**options)


def test_values_of_the_right_types_are_taken() -> None:
    given = [
        {"share": 1},
        {"share": None},
        {"names": ["cat"]},
        {"sizes": (1, 2)},
        {"sizes": ()},
        {"pair": ("b", 2)},
        {"weights": {"a": 1}},
        {"anything": object()},
    ]
    assert [of_all_kinds(**options)(PROMPT, Completion(text="")) for options in given] == [0.0] * 8


@pytest.mark.parametrize(
    ("verifier", "options", "told"),
    [
        (rewards.multiple_choice, {"boxed": 3}, "boxed of multiple_choice must be True or False, got 3 (int)"),
        (rewards.yes_no, {"boxed": 1}, "boxed of yes_no must be True or False, got 1 (int)"),
        (rewards.math_answer, {"expressions": "x"}, "expressions of math_answer must be True or False, got 'x' (str)"),
        (rewards.box_iou, {"threshold": "0.5"}, "threshold of box_iou must be a number or None, got '0.5' (str)"),
        (rewards.count, {"tolerance": 1.5}, "tolerance of count must be a whole number, got 1.5 (float)"),
        (rewards.code_tests, {"seconds": "4"}, "seconds of code_tests must be a number, got '4' (str)"),
        (rewards.judge, {"model": 3, "base_url": "http://x"}, "model of judge must be a text or None, got 3 (int)"),
    ],
)
def test_every_verifier_refuses_options_of_a_wrong_type(verifier: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        verifier(**options)


def test_it_travels_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(longer)) is longer
    assert cloudpickle.loads(cloudpickle.dumps(longer(than=4)))(PROMPT, Completion(text="four")) == 0.0
