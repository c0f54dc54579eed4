"""Levels worked by hand: moves, pushes, shortest solutions against brute force, and each object in its cell of the picture."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rollout.tasks.grid_levels import BOX, FLOOR, GOAL, MOVES, PLAYER, WALL, draw, moved, read_level, solution


def after(text: str, moves: str) -> str:
    level = read_level(text)
    for move in moves:
        level = moved(level, move)
    return str(level)


def by_brute_force(text: str, max_moves: int) -> int | None:
    """Length of the shortest of all sequences of moves that wins."""
    for length in range(max_moves + 1):
        for moves in product(MOVES, repeat=length):
            if read_level(after(text, "".join(moves))).won:
                return length
    return None


@pytest.mark.parametrize("text", ["@--/-#-/--.", "@$./---/###", "+-/$-", "@-/-*"])
def test_a_level_is_written_as_it_is_read(text: str) -> None:
    assert str(read_level(text)) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("@--/--.", "a square"),
        ("@x/-.", "a square"),
        ("--/-.", "one player"),
        ("@@/-.", "one player"),
        ("@-/--", "one goal"),
        ("@$/$.", "at most one box"),
    ],
)
def test_a_level_that_is_none_is_refused_with_its_text(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refused:
        read_level(text)
    assert repr(text) in str(refused.value)


def test_a_move_goes_to_the_next_cell() -> None:
    assert after("---/-@-/--.", "u") == "-@-/---/--."
    assert after("---/-@-/--.", "d") == "---/---/-@."
    assert after("---/-@-/--.", "l") == "---/@--/--."
    assert after("---/-@-/--.", "r") == "---/--@/--."


def test_a_move_into_a_wall_or_over_the_edge_changes_nothing() -> None:
    level = "@#-/---/--."
    assert after(level, "r") == after(level, "u") == after(level, "l") == level


def test_a_row_does_not_continue_in_the_next_one() -> None:
    assert after("--@/---/--.", "r") == "--@/---/--."


def test_the_player_pushes_the_box_and_takes_its_place() -> None:
    assert after("@$-/---/--.", "r") == "-@$/---/--."


def test_a_box_before_a_wall_or_at_the_edge_does_not_move_and_nor_does_the_player() -> None:
    assert after("@$#/---/--.", "r") == "@$#/---/--."
    assert after("-@$/---/--.", "r") == "-@$/---/--."


def test_a_player_on_the_goal_wins_only_where_there_is_no_box() -> None:
    assert read_level(after("@./--", "r")).won
    alone = read_level(after("@./-$", "r"))
    assert str(alone) == "-+/-$"
    assert not alone.won


def test_a_box_on_the_goal_wins() -> None:
    won = read_level(after("@$./---/---", "r"))
    assert str(won) == "-@*/---/---"
    assert won.won


def test_known_levels_have_their_known_solutions() -> None:
    assert solution(read_level("@--/-#-/--."), 4) == "ddrr"  # as long as rrdd, and first in the order u d l r
    assert solution(read_level("@$./---/---"), 4) == "r"
    assert solution(read_level(".$-/@--/---"), 5) == "rrul", "around the box to its right, then one push to the left"
    assert solution(read_level("+-/--"), 4) == ""


def test_no_solution_is_none() -> None:
    assert solution(read_level("@#-/##-/--."), 9) is None
    assert solution(read_level("$--/-@-/--."), 9) is None, "a box in a corner stays there"
    assert solution(read_level("@--/---/--."), 3) is None, "it needs four moves"


@pytest.mark.parametrize(
    "text", ["@--/-#-/--.", "@$-/---/--.", "-.-/-$-/-@-", "---/@$-/-.-", "-#./-$-/@--", "--./$--/@#-", "$--/-@-/--."]
)
def test_search_finds_the_length_that_brute_force_finds(text: str) -> None:
    found = solution(read_level(text), 6)
    assert (None if found is None else len(found)) == by_brute_force(text, 6)
    assert found is None or read_level(after(text, found)).won


@pytest.mark.parametrize("pixels", [16, 32])
def test_the_picture_shows_each_object_in_its_cell(pixels: int) -> None:
    picture = np.asarray(draw(read_level("@$-/#.-/---"), pixels))
    assert picture.shape == (3 * pixels, 3 * pixels, 3)
    middle, corner = slice(pixels // 2, None, pixels), slice(0, None, pixels)
    shown = [[tuple(cell) for cell in row] for row in picture[middle, middle].tolist()]
    assert shown == [[PLAYER, BOX, FLOOR], [WALL, GOAL, FLOOR], [FLOOR, FLOOR, FLOOR]]
    ground = [[tuple(cell) for cell in row] for row in picture[corner, corner].tolist()]
    assert ground == [[FLOOR, FLOOR, FLOOR], [WALL, GOAL, FLOOR], [FLOOR, FLOOR, FLOOR]]


def test_a_player_on_the_goal_shows_both() -> None:
    cell = np.asarray(draw(read_level("+-/-$"), 16))[:16, :16]
    assert {tuple(pixel) for pixel in cell.reshape(-1, 3).tolist()} == {PLAYER, GOAL}
