"""One number, its unit, and how far off it may be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.types import UNREAD
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
        ("[5.2]", "5.2"),
        (5.2, "5.2 km (5200 m)"),
        (5.2, "#### 5.2"),
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
        (5.2, "5.2 (5.3)"),
        (5.2, "5.2 km (5300 m)"),
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
        (1, "0,001"),
        (5, "0,5"),
        (5, "x5"),
        (5, "x_5"),
        (3, "3e5000"),
        (3, "3x10^55555"),
        (5, "five six"),
        (5, r"\boxed{4} 5"),
        (5, r"\boxed{5"),
        (5, "<think>5</think>"),
        (45, "0.45"),
        (45, "4500%"),
        ("0.45%", "0.45"),
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


@pytest.mark.parametrize(
    "text",
    [
        "y = 27/3 = 9",
        "27/3 = 9",
        "It is 8.97, so 9",
        "9, not 8",
        "f(3) = 9",
        "The bar of 2014 is 9",
        "The mean of 8 and 10 is 9",
        "9 because 3 × 3 = 9",
        "In 2014, it was 9",
        "It was 9 in 2014.",
        "The total number of boats is 9",
        "共9个",
    ],
)
def test_reasons_and_rejected_numbers_are_left_out(text: str) -> None:
    assert score(9, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (7, "7th"),
        (7, "the 7th"),
        (7, "第7"),
        (10, "Top 10"),
        (380, "Airbus 380"),
        (7, "Type 7"),
        (7, "above 7"),
        (7, "exceeds 7"),
        (7, "7 at most"),
        (7, "7 and up"),
        (7, "7 plus"),
        (7, "7以上"),
        (7, "至少7"),
        (7, "不是7"),
        (7, "anything but 7"),
        (7, "It cannot be 7"),
        (7, "never 7"),
        (7, "7 is incorrect"),
        (7, "not 7, but 8"),
        (7, "half of 7"),
        (7, "root of 7"),
        (7, "7 out of 10"),
        (7, "between 7 and 9"),
        (7, "7 or eight"),
        (7, "y = 7, z = 9"),
        (9, "y = 7, z = 9"),
        (9, "y = 7 or y = 9"),
        (9, "7 is 9"),
        (9, "neither 7 nor 8 is 9"),
        (2014, "In 2014, it was 9"),
        (1, "one third"),
        (7, "7 point two"),
        (7, "It might be 7."),
        (7, "It is unlikely to be 7."),
        (7, "Is it 7?"),
        (7, "close to 7"),
        (7, "7 would be too many."),
        (7, "7 squared"),
        (7, "twice 7"),
        (7, "7分之一"),
        (7, "除了7"),
        (320, "A320"),
        (2015, "2015/16"),
    ],
)
def test_names_bounds_and_negations_are_wrong(answer: object, text: str) -> None:
    assert score(answer, text) == 0.0


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        ("1998", "1999", 0),
        ("1998", "1998", 1),
        ("1998", "in 1998", 1),
        (1998, "1990", 0),
        ("0042", "0043", 0),
        ("0042", "0042", 1),
        ("1,998", "1,999", 1),
        ("1998.0", "1999", 1),
        ("$1998", "$1999", 1),
        ("1998 cars", "1999 cars", 1),
    ],
)
def test_no_share_of_a_year_or_label_is_allowed(answer: object, text: str, share: float, reward: float) -> None:
    assert score(answer, text, relative=share) == reward


def test_a_year_may_be_off_by_an_absolute_tolerance() -> None:
    assert (score("1998", "1999", tolerance=1), score("1998", "2000", tolerance=1)) == (1.0, 0.0)


@pytest.mark.parametrize("answer", [None, "", "cats", "3 or 4", True, float("nan"), float("inf"), [5], "1/0"])
def test_a_reference_without_one_number_is_an_error(answer: object) -> None:
    told = f"numeric cannot read the answer {answer!r} of prompt 'n-1'; give a number, or a text that is one number with its unit"
    assert score(answer, "5") == Score(reward=0.0, error=told)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "Q3 2011",
            "Airbus 380",
            "Top 5",
            "B-52",
            "June 2011",
            "June 5",
            "5 June",
            "70+",
            "Gate 9",
            "G7",
            "Formula 1",
            "1980s",
            "30s",
        ),
        *(
            "at least 9",
            "under 9",
            "9 or more",
            "9 and older",
            "9 to 12",
            "9-12",
            "9~12",
            "±9",
            "> 9",
            "about 9 or 10",
            "9th",
            "第9",
        ),
        *(
            "2 4 8",
            "2, 4, and 8",
            "x = 2 and x = 4",
            "9:45",
            "9:45 pm",
            "9 pm",
            "3:1",
            "2 in 9",
            "2011-12",
            "2011/12",
            "5/6/2011",
        ),
        *("Yes, 9 days", "9 Elm Street", "9x", "9!", "9^2", "9π", "1011_2", "two thirds", "9 something"),
    ],
)
def test_a_reference_is_read_whole_or_is_an_error(answer: str) -> None:
    for text in ("9", "2011", answer):
        result = score(answer, text, relative=0.05)
        assert isinstance(result, Score) and result.error


@pytest.mark.parametrize(
    "options", [{"tolerance": -1}, {"relative": 1}, {"tolerance": float("inf")}, {"relative": float("nan")}]
)
def test_a_tolerance_is_not_negative_and_finite(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="numeric needs tolerance >= 0 and relative from 0 to below 1, got"):
        numeric(**options)


@pytest.mark.parametrize(
    "text", ["", "I cannot tell.", "<think>5", "the blue bar", r"\boxed{\text{unknown}}", "无法判断"]
)
def test_a_response_without_a_number_is_unread(text: str) -> None:
    assert score(5, text) is UNREAD


@pytest.mark.parametrize("text", ["6", "not 5", "5 or 6", "5 kg or 6 kg", "more than 5"])
def test_a_wrong_or_doubtful_number_is_read(text: str) -> None:
    assert score(5, text) == 0.0 and score(5, text) is not UNREAD


def test_nothing_hostile_is_rewarded() -> None:
    more = ["\\frac{" * 160, "1,000" * 200, "not " * 250, "\\text{" * 160, "e9" * 500, "10^" * 300, "{\\circ" * 150]
    rewarded = {text[:60]: score("7641.3 cm", text, relative=0.05) for text in [*HOSTILE, *more]}
    assert {text: reward for text, reward in rewarded.items() if reward != 0.0} == {}


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score(7641.3, text) == 0.0
