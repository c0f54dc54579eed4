"""What a clock says, however it is said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Score
from rewards.types import UNREAD
from rewards.verifiers.clock_time import clock_time
from rollout import Completion, Prompt
from tests.rewards.hostile import HOSTILE


def score(answer: object, text: str, tolerance: float = 0) -> float | Score:
    return clock_time(tolerance=tolerance)(Prompt(id="t-1", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("10:09", "10:09"),
        ("10:09", "10.09"),
        ("10:09", "10h09"),
        ("10:09", "10 h 09"),
        ("10:09", "10：09"),
        ("10:09", "10 : 09"),
        ("10:09", "It is 10:09."),
        ("10:09", r"\boxed{10:09}"),
        ("10:09", r"\boxed{\text{10:09 PM}}"),
        ("10:09", "**10:09**"),
        ("10:09", "<answer>10:09</answer>"),
        ("10:09", "<think>10:10</think>10:09"),
        ("10:09", "It could be 2:50.\nThe answer is 10:09"),
        ("10:09", "22:09"),
        ("22:09", "10:09"),
        ("22:09", "10:09 pm"),
        ("10:09 pm", "22:09"),
        ("10:09 pm", "10.09 p.m."),
        ("22:09", "10:09 P.M."),
        ("22:09", "10:09 in the evening"),
        ("10:09 am", "10:09am"),
        ("10:09 am", "10:09"),
        ("10:09 am", "10:09 in the morning"),
        ("10:09", "10:09:30"),
        ("10:09:30", "10:09:30"),
        ("10:09:00", "10:09"),
        ("10:09", "nine minutes past ten"),
        ("10:09", "9 past 10"),
        ("10:10", "10:10, that is ten past ten"),
        ("9:00", "9 o'clock"),
        ("9:00", "nine o’clock"),
        ("9:00", "It is nine o'clock."),
        ("9:00", "9 am"),
        ("21:00", "9pm"),
        ("21:00", "nine p.m."),
        ("3:15", "quarter past three"),
        ("3:15", "a quarter past 3"),
        ("3:15", "a quarter after three"),
        ("3:30", "half past 3"),
        ("3:30", "Half past three o'clock"),
        ("15:30", "half past three pm"),
        ("3:45", "quarter to four"),
        ("3:50", "ten to four"),
        ("3:50", "10 minutes to 4"),
        ("3:50", "ten before four"),
        ("3:50", "ten till four"),
        ("7:25", "twenty-five past seven"),
        ("7:25", "twenty five past 7"),
        ("7:35", "twenty-five to eight"),
        ("7:20", "twenty past seven"),
        ("12:50", "ten to one"),
        ("12:50 pm", "ten to one pm"),
        ("11:45 pm", "quarter to 12 am"),
        ("12:00", "noon"),
        ("12:00", "midnight"),
        ("12:00 pm", "12 noon"),
        ("0:00", "midnight"),
        ("00:00", "12:00 am"),
        ("0:10", "ten past midnight"),
        ("11:50 am", "ten to noon"),
        ("midnight", "00:00"),
        ("12:30", "00:30"),
        ("12:30 am", "0:30"),
        ("10:09", "١٠:٠٩"),
    ],
)
def test_the_time_in_any_form_is_right(answer: str, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("10:09", ""),
        ("10:09", "10:08"),
        ("10:09", "9:10"),
        ("10:09", "2:50"),
        ("10:09", "10:9"),
        ("10:09", "1009"),
        ("10:09", "10"),
        ("10:09", "110:09"),
        ("10:09", "10:090"),
        ("10:09", "10:09 or 2:50"),
        ("10:09", "2:50 or 10:09"),
        ("10:09", "10:09, 10:10"),
        ("10:09", "between 10:09 and 10:10"),
        ("10:09", "8, 9, 10:09"),
        ("10:09", "10:09 or noon"),
        ("10:09", "10:09.2020"),
        ("10:09", "1:10:09:30"),
        ("10:09", "not 10:09"),
        ("10:09", "It isn't 10:09"),
        ("10:09", "before 10:09"),
        ("10:09", "after 10:09"),
        ("10:09", r"\boxed{2:50} 10:09"),
        ("10:09", r"\boxed{10:09"),
        ("10:09", "<think>10:09</think>"),
        ("10:09", "<think>10:09"),
        ("10:09", "10:09\nNo."),
        ("1:00", "25:00"),
        ("11:15", "10:75"),
        ("10:10", "10:09:60"),
        ("0:00", "24:00"),
        ("10:09 am", "10:09 pm"),
        ("22:09", "10:09 am"),
        ("10:09 pm", "00:09"),
        ("10:09 am", "22:09"),
        ("10:09 am", "10:09 in the evening"),
        ("22:09", "22:09 am"),
        ("22:09", "22:09 pm"),
        ("1:00", "13:00 am"),
        ("12:00 am", "noon"),
        ("12:00", "afternoon"),
        ("midnight", "12 noon"),
        ("midnight", "ten past midnight"),
        ("noon", "0:00"),
        ("10:09:30", "10:09"),
        ("10:09:30", "10:09:31"),
        ("10:09:00", "10:09:30"),
        ("9:00", "9"),
        ("9:00", "nine"),
        ("9:00", "almost ten or nine o'clock"),
        ("9:00", "9 or 10 o'clock"),
        ("10:00", "9 or 10 o'clock"),
        ("3:15", "quarter to three"),
        ("3:15", "quarter past four"),
        ("3:30", "half past four"),
        ("4:00", "ten to four"),
        ("3:00", "past three"),
        ("7:20", "twenty-five past seven"),
        ("7:05", "twenty five past seven"),
        ("5:00", "seventy past four"),
        ("10:00", "I am ten"),
        ("3:00", "three fifteen o'clock"),
    ],
)
def test_another_time_or_several_or_none_are_wrong(answer: str, text: str) -> None:
    assert score(answer, text) == 0.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("4:35", "four thirty-five"),
        ("4:35", "It is four thirty five."),
        ("4:05", "four oh five"),
        ("4:12 pm", "four twelve pm"),
        ("4:35", "4点35分"),
        ("4:35", "四点三十五分"),
        ("4:05", "四点零五分"),
        ("4:15", "4点一刻"),
        ("4:30", "四点半"),
        ("4:00", "4点整"),
        ("3:50", "差十分四点"),
        ("3:45", "差一刻四点"),
        ("16:35", "下午4点35分"),
        ("4:35 am", "凌晨4点35分"),
        ("22:05:30", "晚上10点5分30秒"),
        ("4:35", "答案是4:35。"),
        ("3:45", "quarter of four"),
        ("4:27", "three minutes to half past four"),
        ("4:00", "exactly 4"),
        ("4:00", "4 sharp"),
        ("04:35", "0435"),
        ("16:35", "1635 hours"),
        ("4:35", "4 35"),
        ("4:35", "4-35"),
        ("4:35", "4;35"),
        ("4:35", r"\boxed{4{:}35}"),
        ("4:35", r"\boxed{4\!:\!35}"),
        ("4:35", "4 h 35 min"),
        ("16:35", "4:35 in the afternoon"),
        ("22:35", "10:35 at night"),
        ("4:35", "The short hand is past 4 and the long hand is on 7, so the clock shows 4:35."),
        ("4:35", "The short hand is past 4. The long hand is on 7. Therefore, it is 4:35 p.m."),
        ("4:35", "The clock reads 4:35 because the long hand is on 7."),
        ("4:35", "As the hands are on 4 and 7, the time is 4:35."),
        ("4:35", "4:35, not 7:22"),
        ("4:35", "about 4:35"),
        ("4:35", "4:35 (or 16:35)"),
    ],
)
def test_words_chinese_and_reasons_are_understood(answer: str, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("4:35", "four fifty-three"),
        ("4:35", "4点53分"),
        ("4:35 am", "下午4点35分"),
        ("6 am", "6 pm"),
        ("6 am", "18:00"),
        ("4:15", "quarter to four"),
        ("4:35", "4:35 is wrong"),
        ("4:35", "It cannot be 4:35"),
        ("4:35", "never 4:35"),
        ("4:35", "不是4:35"),
        ("4:35", "4:35, give or take 5 minutes"),
        ("4:35", "4:35 at the latest"),
        ("4:35", "4:35 or later"),
        ("4:35", "no later than 4:35"),
        ("4:35", "4:35-4:40"),
        ("7:22", "4:35, not 7:22"),
        ("4:57", "3 of 5"),
        ("4:35", "4:35 am, 4:35 pm"),
        ("16:35", "1635"),
        ("4:00", "exactly 4 people"),
    ],
)
def test_other_words_bounds_and_negations_are_wrong(answer: str, text: str) -> None:
    assert score(answer, text) == 0.0


@pytest.mark.parametrize(
    ("answer", "text", "tolerance", "reward"),
    [
        ("10:09", "10:10", 1, 1),
        ("10:09", "10:08", 1, 1),
        ("10:09", "10:11", 1, 0),
        ("12:00", "11:58", 2, 1),  # the short way round
        ("11:59", "12:01", 2, 1),
        ("11:59", "12:01", 1, 0),
        ("23:59", "0:01", 2, 1),
        ("11:58", "0:01", 3, 1),  # the reference says no half of the day
        ("23:59", "12:01 pm", 2, 0),
        ("10:09:30", "10:09", 0.5, 1),
        ("10:09:30", "10:09", 0.4, 0),
        ("10:09", "10:10:59", 1, 1),  # the reference has no seconds
    ],
)
def test_a_tolerance_is_minutes_round_the_dial(answer: str, text: str, tolerance: float, reward: float) -> None:
    assert score(answer, text, tolerance) == reward


@pytest.mark.parametrize("answer", [None, "", "25:00", "10", 10, "10:09 or 10:10"])
def test_a_reference_that_is_no_time_is_an_error(answer: object) -> None:
    told = (
        f"clock_time cannot read the answer {answer!r} of prompt 't-1'; give a time such as 10:09, 10:09:30 or 10:09 pm"
    )
    assert score(answer, "10:09") == Score(reward=0.0, error=told)


@pytest.mark.parametrize("tolerance", [-1, float("nan")])
def test_a_tolerance_is_not_negative(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance of clock_time must be >= 0 minutes, got"):
        clock_time(tolerance=tolerance)


@pytest.mark.parametrize("text", ["", "The clock is broken.", "<think>10:09", "17", "看不清"])
def test_a_response_without_a_time_is_unread(text: str) -> None:
    assert score("10:09", text) is UNREAD


@pytest.mark.parametrize("text", ["10:10", "not 10:09", "10:09 or 2:50", "noon", "十点半"])
def test_a_wrong_or_doubtful_time_is_read(text: str) -> None:
    assert score("10:09", text) == 0.0 and score("10:09", text) is not UNREAD


def test_nothing_hostile_is_rewarded() -> None:
    more = ["a quarter past " * 66, "10:" * 333, "twenty " * 140, "1 " * 500 + "o'clock", "noon " * 200 + "7:43"]
    rewarded = {text[:60]: score("7:43", text) for text in [*HOSTILE, *more]}
    assert {text: reward for text, reward in rewarded.items() if reward != 0.0} == {}


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_text_is_never_rewarded(text: str) -> None:
    assert score("7:43:11", text) == 0.0
