"""The environments that come with the house, and what a policy might write to them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rollout.environments.tools import Calculator, GuessNumber, ZoomTool, calculate
from rollout.types import Completion, Done, Observation, Prompt

# 100 × 50 pixels whose red is the column and whose green the row.
COLUMNS, ROWS = np.meshgrid(np.arange(100), np.arange(50))
PICTURE = Image.fromarray(np.stack([COLUMNS, ROWS, 0 * ROWS], axis=2).astype(np.uint8))


def call(tool: str, **arguments) -> str:
    return f"Let me look. <tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"


def zoomed(text: str, **options) -> Observation | Done:
    tool = ZoomTool(**{"min_pixels": 1, **options})
    tool.reset(Prompt(id="p", messages=[], images=[PICTURE]))
    return tool.step(Completion(text=text))


def test_a_box_is_cut_out_in_thousandths_of_width_and_height() -> None:
    # A tenth to half of the width is columns 10 to 49; a fifth to four fifths of the height rows 10 to 39.
    seen = zoomed(call("image_zoom_in_tool", bbox_2d=[100, 200, 500, 800]))
    (part,) = seen.images
    assert part.size == (40, 30)
    assert part.getpixel((0, 0))[:2] == (10, 10) and part.getpixel((39, 29))[:2] == (49, 39)


def test_a_small_part_is_enlarged_and_a_large_one_made_smaller() -> None:
    box = call("image_zoom_in_tool", bbox_2d=[0, 0, 100, 200])  # 10 × 10
    assert zoomed(box, min_pixels=64 * 64).images[0].size == (64, 64)
    everything = call("image_zoom_in_tool", bbox_2d=[0, 0, 1000, 1000])  # 100 × 50
    assert zoomed(everything, max_pixels=40 * 20).images[0].size == (40, 20)
    within_a_pixel = call("image_zoom_in_tool", bbox_2d=[0, 0, 1, 1])
    assert zoomed(within_a_pixel, min_pixels=8 * 8).images[0].size == (8, 8)


def test_by_default_a_part_is_shown_in_256_tokens_as_by_qwens_own_tool() -> None:
    tool = ZoomTool()
    tool.reset(Prompt(id="p", messages=[], images=[PICTURE]))
    (part,) = tool.step(Completion(text=call("image_zoom_in_tool", bbox_2d=[0, 0, 100, 200]))).images
    assert part.size == (16 * 32, 16 * 32)


def test_what_was_shown_can_be_looked_at_more_closely_and_numbers_may_be_written_as_floats() -> None:
    tool = ZoomTool(min_pixels=1)
    tool.reset(Prompt(id="p", messages=[], images=[PICTURE]))
    tool.step(
        Completion(text=call("image_zoom_in_tool", bbox_2d=[500, 0, 1000, 1000], img_idx=0.0))
    )  # columns 50 to 99
    (part,) = tool.step(Completion(text=call("image_zoom_in_tool", bbox_2d=[500, 0, 1000, 1000], img_idx=1))).images
    assert part.size == (25, 50) and part.getpixel((0, 0))[:2] == (75, 0)


def test_the_tool_answers_as_a_tool_whether_it_shows_something_or_finds_fault() -> None:
    for box in ([0, 0, 500, 500], [9, 9, 9, 9]):
        assert zoomed(call("image_zoom_in_tool", bbox_2d=box)).role == "tool"


def test_a_call_that_a_model_only_thinks_of_is_no_call() -> None:
    thought = f"<think>I could {call('image_zoom_in_tool', bbox_2d=[0, 0, 9, 9])}, but no.</think>"
    assert isinstance(zoomed(f"{thought}\n\nThe answer is 7."), Done)
    assert zoomed(f"{thought}{call('image_zoom_in_tool', bbox_2d=[0, 0, 500, 500])}").images[0].size == (50, 25)


def test_a_part_too_slender_for_any_processor_is_refused() -> None:
    tool = ZoomTool()
    tool.reset(Prompt(id="p", messages=[], images=[Image.new("RGB", (1000, 1000))]))
    seen = tool.step(Completion(text=call("image_zoom_in_tool", bbox_2d=[0, 0, 1000, 1])))
    assert not seen.images and "longer than 100 times its other side" in seen.text


def test_without_a_call_the_episode_is_done() -> None:
    assert isinstance(zoomed("The answer is 7."), Done)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (call("image_zoom_in_tool", bbox_2d=[500, 0, 500, 9]), "x1 < x2"),
        (call("image_zoom_in_tool", bbox_2d=[0, 0, 1001, 9]), "from 0 to 1000"),
        (call("image_zoom_in_tool", bbox_2d=[0, 0, "9", 9]), "four numbers"),
        (call("image_zoom_in_tool", bbox_2d=[0, 0, math.nan, 9]), "four numbers"),
        (call("image_zoom_in_tool", bbox_2d=[0, 0, 9, 9], img_idx=1), "img_idx must be from 0 to 0"),
        (call("image_zoom_in_tool", bbox_2d=[0, 0, 9, 9], img_idx=0.5), "img_idx must be from 0 to 0"),
        (call("image_zoom_in_tool", bbox_2d=[0, 0, 9, 9], img_idx=[]), "img_idx must be from 0 to 0"),
        (call("image_zoom_in_tool"), "four numbers"),
        (call("other"), "the tool is called image_zoom_in_tool"),
        ("<tool_call>{oops}</tool_call>", "not JSON"),
        ("<tool_call>[1]</tool_call>", "a call is"),
        ("<tool_call>" + "[" * 1500, "not JSON"),
        ("<tool_call>" + "9" * 9000, "too long"),
    ],
)
def test_a_faulty_call_is_answered_by_what_is_wrong_with_it(text: str, told: str) -> None:
    seen = zoomed(text)
    assert isinstance(seen, Observation) and not seen.images and told in seen.text


@given(text=st.text() | st.text().map(lambda inside: f"<tool_call>{inside}</tool_call>"))
def test_nothing_that_a_policy_writes_breaks_a_tool(text: str) -> None:
    assert isinstance(zoomed(text), Observation | Done)
    assert isinstance(Calculator().step(Completion(text=text)), Observation | Done)


def test_the_calculator_shows_the_value_of_the_call() -> None:
    seen = Calculator().step(Completion(text=call("calculator", expression="(3 + 4) * 2 ** 5 / 7")))
    assert (seen.text, seen.role) == ("32", "tool")
    assert isinstance(Calculator().step(Completion(text="32")), Done)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7 // 2", 3), ("-7 % 3", 2), ("2 ** -1", 0.5), ("1e3 + 1", 1001.0), ("+3 - -4", 7), ("2 ** 100", 2**100)],
)
def test_arithmetic(expression: str, value: float) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("9 ** 9 ** 9", "too large"),
        ("(9 ** 300) ** 300", "too large"),
        ("9" * 150 + " * " + "9" * 40 + " ** 20", "too large"),
        ("1e308 * 10", "too large"),
        ("10.0 ** 400", "too large"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("(-8) ** 0.5", "no such power"),
        ("__import__('os').system('true')", "not an arithmetic"),
        ("(lambda: 1)()", "not an arithmetic"),
        ("'a' * 9", "not an arithmetic"),
        ("True + 1", "not an arithmetic"),
        ("[1] * 10**9", "not an arithmetic"),
        ("1 << 9", "not an arithmetic"),
        ("(" * 180, "not an arithmetic"),
        ("-" * 190 + "1", None),
        ("1+" * 200, "too long"),
        ("", "not an arithmetic"),
        ("1\x00", "not an arithmetic"),
    ],
)
def test_what_is_no_arithmetic_or_too_much_of_it_is_refused(expression: str, told: str | None) -> None:
    if told is None:
        assert calculate(expression) == 1
        return
    with pytest.raises(ValueError, match=told):
        calculate(expression)


@given(st.text(alphabet="0123456789+-*/%(). e", max_size=60))
def test_the_calculator_ends_soon_with_a_finite_number_or_a_refusal(expression: str) -> None:
    try:
        value = calculate(expression)
    except ValueError:
        return
    assert math.isfinite(value) and (not isinstance(value, int) or value.bit_length() <= 1024)


def test_a_game_is_won_by_halving_the_range() -> None:
    game = GuessNumber(max_guesses=3)
    game.reset(Prompt(id="p", messages=[], answer="5"))
    assert game.step(Completion(text="4")).text == "higher"
    assert game.step(Completion(text="is it 6?")).text == "lower"
    assert game.step(Completion(text="5")).outcome == {"won": True, "guesses": 3}


@pytest.mark.parametrize("said", ["3-7", "I say 7", "-3, no: 7", "7"])
def test_the_last_whole_number_is_the_guess(said: str) -> None:
    game = GuessNumber()
    game.reset(Prompt(id="p", messages=[], answer="7"))
    assert game.step(Completion(text=said)).outcome == {"won": True, "guesses": 1}


def test_a_monster_of_a_number_is_no_guess_though_it_ends_in_the_right_one() -> None:
    game = GuessNumber()
    game.reset(Prompt(id="p", messages=[], answer="7"))
    for monster in ("1" * 25 + "7", "7" * 9000):
        assert game.step(Completion(text=monster)).text == "a number?"


def test_a_game_is_lost_after_the_last_guess_and_a_turn_without_a_number_is_one() -> None:
    game = GuessNumber(max_guesses=2)
    game.reset(Prompt(id="p", messages=[], answer="5"))
    assert game.step(Completion(text="well")).text == "a number?"
    assert game.step(Completion(text="4")).outcome == {"won": False, "guesses": 2}
