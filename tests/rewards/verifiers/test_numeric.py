"""One number, its unit, and how far off it may be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.verifiers.numeric import numeric
from rollout import Completion, Prompt
from tests.rewards.hostile import HOSTILE


def score(answer: object, text: str, **options: float) -> float | Score:
    return numeric(**options)(Prompt(id="n-1", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (5.2, "5.2"),
        (5.2, "5.20"),
        (5.2, "+5.2"),
        (5, "5.0"),
        (5, "5."),
        (0.5, ".5"),
        ("5.2", r"\boxed{5.2}"),
        (5.2, r"\boxed{5.2\,\text{cm}}"),
        (5.2, "$5.2$"),
        (5.2, r"\(5.2\)"),
        (5.2, "**5.2**"),
        (5.2, "*5.2*"),
        (5.2, "The answer is 5.2."),
        (5.2, "So x = 5.2"),
        (5.2, "about 5.2 in total"),
        (5.2, "≈ 5.2"),
        (-5.2, "-5.2"),
        (-5.2, "−5.2"),
        (-5.2, "- 5.2"),
        (-5, "-$5"),
        (-5, "$-5"),
        (1204.5, "1,204.5"),
        (1204567, "1,204,567"),
        (12345, r"12\,345"),
        (12345, "12{,}345"),
        (12345, "12\u202f345"),
        ("1,204.5", "1204.5"),
        (300000, "3e5"),
        (300000, "3E+5"),
        (300000, r"3\times10^{5}"),
        (300000, r"3 \cdot 10^5"),
        (300000, "3 × 10^5"),
        (300000, "3x10^5"),
        (300000, "3*10^5"),
        (300000, "3×10⁵"),
        (0.00003, "3e-5"),
        (0.00003, r"3\times 10^{-5}"),
        (3e-5, "0.00003"),
        (3e-2, "3 × 10^-2"),
        (100000, "10^5"),
        (0.75, "3/4"),
        ("3/4", "0.75"),
        (0.75, r"\frac{3}{4}"),
        (-0.75, r"-\frac{3}{4}"),
        (0.75, "75%"),
        (0.45, "45%"),
        (0.45, "45 percent"),
        (0.45, r"45\%"),
        ("45%", "45%"),
        ("45%", "0.45"),
        ("45%", "45 %"),
        ("45%", "45% of all"),
        ("5.2 cm", "5.2 cm"),
        ("5.2 cm", "5.2cm."),
        ("5.2 cm", "5.2"),
        ("5.2 cm", r"\boxed{5.2\text{ cm}}"),
        ("60 km/h", r"60\,\mathrm{km/h}"),
        ("5 m^2", "5 m²"),
        (5, "5 m^2"),
        ("90°", r"90^\circ"),
        (5, "$5"),
        ("$5", "5"),
        ("$5", r"\$5"),
        ("$5", "5 dollars"),
        (5200000, "5.2 million people"),
        ("5.2 million", "5,200,000"),
        ("5.2 billion", "5200 million"),
        (17, "١٧"),
        (17.5, "١٧.٥"),
        (17, "１７"),
        (5, "<think>4</think>5"),
        (9007199254740993, "9007199254740993"),
    ],
)
def test_the_number_in_any_form_is_right(answer: object, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (5.2, ""),
        (5.2, "5.3"),
        (5.2, "-5.2"),
        (5.2, "15.2"),
        (5.2, "5.25"),
        (5, "5.2"),
        (5, "5 or 6"),
        (5, "5 of 6"),
        (5, "4 5"),
        (5, "4, 5"),
        (5, "4-5"),
        (5, "4–5"),
        (5, "[4, 5]"),
        (5, "5 5"),
        (5, "5 = 5"),
        (5, "2 + 3"),
        (5, "5^2"),
        (5, "5²"),
        (5, r"\sqrt{5}"),
        (5, "√5"),
        (2, r"2\pi"),
        (2, "2π"),
        (5, "5+"),
        (5, "±5"),
        (5, "> 5"),
        (5, "at least 5"),
        (5, "more than 5"),
        (5, "not 5"),
        (5, "It isn't 5"),
        (5, "5 or more"),
        (5, "10:5"),
        (10, "10:30"),
        (10, "10.30.2020"),
        (3, "3/0"),
        (0, "0/0"),
        (3, "3/4/5"),
        (0.5, "0,5"),
        (1, "0,001"),
        (5, "x5"),
        (5, "x_5"),
        (3, "3e5000"),
        (3, "3x10^55555"),
        (5, "five"),
        (5, r"\boxed{4} 5"),
        (5, r"\boxed{5"),
        (5, "<think>5</think>"),
        (45, "0.45"),
        (45, "45%"),
        ("45%", "45"),
        ("45%", "0.45%"),
        (5.2, "5.2 million"),
        ("5.2 million", "5.2"),
        (0.45, "45"),
        ("45%", "4.5"),
        ("45%", "45 cm"),
        ("45 cm", "45%"),
        ("5.2 cm", "5.2 mm"),
        ("5.2 cm", "5.2 cm^2"),
        ("5 m", "5 m/s"),
        ("5 m", "5 mm"),
        ("$5", "€5"),
        (5, "$5 or €5"),
        (5.2, "5.2e6"),
        ("5.2 million", "5.2 billion"),
        (5200000, "5.2"),
        (9007199254740993, "9007199254740992"),
        (5, "NaN"),
        (5, "inf"),
        (5, "1e999"),
        (5, "5" * 5000),
        (5, "5e" + "9" * 900),
    ],
)
def test_another_number_or_several_are_wrong(answer: object, text: str) -> None:
    assert score(answer, text) == 0.0


@pytest.mark.parametrize(
    ("answer", "text", "options", "reward"),
    [
        (1, "1.3", {"tolerance": 0.3}, 1),  # which no binary fraction would say
        (1, "0.7", {"tolerance": 0.3}, 1),
        (1, "1.31", {"tolerance": 0.3}, 0),
        (100, "105", {"relative": 0.05}, 1),
        (100, "95", {"relative": 0.05}, 1),
        (100, "105.1", {"relative": 0.05}, 0),
        (100, "94.9", {"relative": 0.05}, 0),
        (-100, "-104", {"relative": 0.05}, 1),
        (-100, "104", {"relative": 0.05}, 0),
        (0, "0.001", {"relative": 0.05}, 0),
        (0, "0", {"relative": 0.05}, 1),
        (1, "1.2", {"tolerance": 0.2, "relative": 0.05}, 1),
        (100, "104", {"tolerance": 0.2, "relative": 0.05}, 1),
        (0.1 + 0.2, "0.3", {}, 1),
        ("45%", "46%", {"tolerance": 1}, 1),
        ("45%", "0.46", {"tolerance": 1}, 1),
        ("45%", "47%", {"tolerance": 1}, 0),
        (1 / 3, "0.33", {}, 0),
        (1 / 3, "0.33", {"tolerance": 0.01}, 1),
        (45, "44% or 45%", {"relative": 0.05}, 0),
    ],
)
def test_a_tolerance_counts_with_its_edge(answer: object, text: str, options: dict[str, float], reward: float) -> None:
    assert score(answer, text, **options) == reward


@pytest.mark.parametrize("answer", [None, "", "cats", "3 or 4", True, float("nan"), float("inf"), [5], "1/0"])
def test_a_reference_without_one_number_is_an_error(answer: object) -> None:
    told = f"numeric cannot read the answer {answer!r} of prompt 'n-1'; give a number, or a text with one number in it"
    assert score(answer, "5") == Score(reward=0.0, error=told)


@pytest.mark.parametrize(
    "options", [{"tolerance": -1}, {"relative": 1}, {"tolerance": float("inf")}, {"relative": float("nan")}]
)
def test_a_tolerance_is_not_negative_and_finite(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="numeric needs tolerance >= 0 and relative from 0 to below 1, got"):
        numeric(**options)


def test_nothing_hostile_is_rewarded() -> None:
    more = ["\\frac{" * 160, "1,000" * 200, "not " * 250, "\\text{" * 160, "e9" * 500, "10^" * 300, "{\\circ" * 150]
    rewarded = {text[:60]: score("7641.3 cm", text, relative=0.05) for text in [*HOSTILE, *more]}
    assert {text: reward for text, reward in rewarded.items() if reward != 0.0} == {}


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score(7641.3, text) == 0.0
