"""Counts, numbers within a tolerance, and times of day."""

import pytest

from rewards import Score
from rewards.clock_time import clock_time
from rewards.count import count
from rewards.numeric import numeric
from rollout import Completion, Prompt


def score(verifier, answer: object, text: str) -> float | Score:
    return verifier(Prompt(id="p-7", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        (5, "5", 1),
        ("5", "There are 5 dogs.", 1),
        (5, "five", 1),
        (5, "There are five dogs in it.", 1),
        (5, r"\boxed{5}", 1),
        (5, "I see 3 here and 2 there.\nSo 5", 1),
        (5, "<think>3? 4?</think>5", 1),
        (5, "The answer is 5, five dogs.", 1),
        (5, "5.0", 1),
        (5, "٥", 1),
        (5, "５", 1),
        (5, "图片里有五只狗", 1),
        (2, "两只", 1),
        (23, "二十三", 1),
        (12, "十二只", 1),
        (40, "四十", 1),
        (21, "twenty-one", 1),
        (21, "Twenty one dogs", 1),
        (90, "ninety", 1),
        (13, "thirteen", 1),
        (1204, "1,204", 1),
        (0, "zero", 1),
        (0, "0", 1),
        (5, "", 0),
        (5, "6", 0),
        (5, "-5", 0),
        (5, "5.5", 0),
        (5, "3 or 5", 0),
        (5, "3 of the 5", 0),
        (5, "between 4 and 6", 0),
        (5, "5 dogs\n6", 0),
        (5, "many", 0),
        (5, "fifty", 0),
        (5, "fiveteen", 0),
        (5, "15", 0),
        (5, "5,5", 0),
        (5, "5" * 5000, 0),
        (5, "<think>5</think>", 0),
        (5, "1, 2, 3, 4, 5", 0),
        (20, "二三", 0),
        (5, r"\boxed{4}\boxed{5}", 0),
    ],
)
def test_one_whole_number_is_a_count(answer: object, text: str, reward: float) -> None:
    assert score(count, answer, text) == reward


def test_with_a_tolerance_a_near_miss_earns_less() -> None:
    assert [score(count(tolerance=2), 5, str(n)) for n in range(2, 9)] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0]
    )
    with pytest.raises(ValueError, match="tolerance of count must be >= 0, got -1"):
        count(tolerance=-1)


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        (17.5, "17.5", 1),
        ("17.5", "It is 17.50 cm.", 1),
        (17.5, "$17.50", 1),
        (1234.5, "1,234.5", 1),
        (-3, "-3", 1),
        (-3, "−3", 1),
        (0.75, "3/4", 1),
        (0.45, "45%", 1),
        ("45%", "45 %", 1),
        ("45%", r"\boxed{45\%}", 1),
        ("45%", "0.45", 1),
        (3e5, "3e5", 1),
        (3e5, r"$3\times10^{5}$", 1),
        (3e-2, "3 × 10^-2", 1),
        (0.1 + 0.2, "0.3", 1),
        (0.5, ".5", 1),
        (17.5, "١٧.٥", 1),
        (17.5, "<think>18</think>17.5", 1),
        (17.5, "17.6", 0),
        (45, "45%", 0),
        (17.5, "-17.5", 0),
        (17.5, "17 or 18", 0),
        (17.5, "17.5 of 18", 0),
        (17.5, "", 0),
        (17.5, "nan", 0),
        (17.5, "inf", 0),
        (17.5, "17,5", 0),
        (17.5, "17.5.1", 0),
        (17.5, "1/0", 0),
        (0, "0/0", 0),
        (17.5, "1e999", 0),
        (17.5, "9" * 5000, 0),
        (17.5, "seventeen and a half", 0),
    ],
)
def test_one_number_is_equal_in_any_form(answer: object, text: str, reward: float) -> None:
    assert score(numeric, answer, text) == reward


def test_tolerances_are_absolute_or_relative() -> None:
    assert [score(numeric(relative=0.05), 100, text) for text in ("95", "105", "94.9", "105.1")] == [1, 1, 0, 0]
    assert [score(numeric(tolerance=2), 100, text) for text in ("98", "102", "97.9")] == [1, 1, 0]
    assert score(numeric(relative=0.05, tolerance=10), 100, "109") == 1
    for options in ({"tolerance": -1}, {"relative": 1}, {"relative": float("nan")}):
        with pytest.raises(ValueError, match="numeric needs tolerance >= 0 and relative from 0 to below 1"):
            numeric(**options)


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        ("10:09", "10:09", 1),
        ("10:09", "The clock shows 10:09.", 1),
        ("10:09", "10:09 am", 1),
        ("10:09", "10.09 p.m.", 1),
        ("10:09", "22:09", 1),
        ("10:09", "10h09", 1),
        ("10:09", "10:09:30", 1),  # the reference has no seconds
        ("10:09", "nine minutes past ten", 1),
        ("10:09", "9 past 10", 1),
        ("3:15", "quarter past three", 1),
        ("3:15", "a quarter past 3", 1),
        ("3:30", "half past three", 1),
        ("3:45", "quarter to four", 1),
        ("3:50", "ten to four", 1),
        ("3:35", "twenty-five to four", 1),
        ("3:20", "twenty past three", 1),
        ("9:00", "9 o'clock", 1),
        ("9:00", "nine o'clock", 1),
        ("12:00", "noon", 1),
        ("12:00", "midnight", 1),
        ("00:00", "midnight", 1),
        ("12:30", "0:30", 1),
        ("12:40", "twenty to one", 1),
        ("10:09 pm", "22:09", 1),
        ("10:09 pm", "10:09", 1),
        ("10:09:30", "10:09:30", 1),
        ("9:00 am", "9am", 1),
        ("10:09", r"\boxed{10:09}", 1),
        ("10:09", "<think>9:10</think>10:09", 1),
        ("10:09", "١٠:٠٩", 1),
        ("10:09", "10:10", 0),
        ("10:09", "9:10", 0),
        ("10:09", "2:50", 0),
        ("10:09", "1:009", 0),
        ("10:09", "10:9", 0),
        ("10:09", "10:09 or 10:10", 0),
        ("10:09", "between 10:08 and 10:10", 0),
        ("10:09", "25:09", 0),
        ("10:09", "10:75", 0),
        ("10:09", "1009", 0),
        ("10:09", "", 0),
        ("10:09", "ten", 0),
        ("10:09 pm", "10:09 am", 0),
        ("10:09 pm", "00:09", 0),
        ("10:09:30", "10:09:31", 0),
        ("10:09", "22:09 pm", 0),
        ("3:15", "quarter to three", 0),
        ("12:00", "afternoon", 0),
    ],
)
def test_one_time_is_read_off_a_clock(answer: object, text: str, reward: float) -> None:
    assert score(clock_time, answer, text) == reward


def test_a_time_may_be_off_by_minutes_the_short_way_round() -> None:
    near = clock_time(tolerance=5)
    assert [score(near, "11:58", text) for text in ("12:03", "12:04", "11:53", "11:52", "0:01")] == [1, 0, 1, 0, 1]
    with pytest.raises(ValueError, match="tolerance of clock_time must be >= 0 minutes, got -1"):
        clock_time(tolerance=-1)


@pytest.mark.parametrize("verifier", [count, numeric, clock_time])
@pytest.mark.parametrize("answer", [None, "", "a dog", [5], "5 or 6"])
def test_a_reference_that_cannot_be_read_is_an_error(verifier, answer: object) -> None:
    if answer == [5] and verifier is count:
        return  # str([5]) has one number
    found = score(verifier, answer, "5")
    assert isinstance(found, Score) and f"cannot read the answer {answer!r} of prompt 'p-7'" in str(found.error)
