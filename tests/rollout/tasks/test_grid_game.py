"""The grid game: its levels and splits, how its turns are answered, and what the cold start demonstrates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest

from rollout.data.prompts import prompts_from
from rollout.tasks.grid_game import (
    GameOptions,
    GridGameEnvironment,
    grid_game,
    mostly_informed,
    split_of,
    to_prompt,
)
from rollout.tasks.grid_levels import draw, moved, read_level, solution
from rollout.types import Completion, Done, Observation, Prompt

OPTIONS = GameOptions()
ROWS = grid_game("test", num_prompts=240)
PROMPTS = prompts_from(ROWS, to_prompt)


def prompt_of(level: str) -> Prompt:
    return Prompt(id="a", messages=[], columns={"level": level, "moves": len(solution(read_level(level), 9) or "")})


def play(level: str, *turns: str, spare_turns: int = 0) -> Observation | Done:
    """Returns the answer to the last turn."""
    game = GridGameEnvironment(replace(OPTIONS, spare_turns=spare_turns))
    game.reset(prompt_of(level))
    *before, answer = [game.step(Completion(text=turn)) for turn in turns]
    assert all(isinstance(each, Observation) for each in before), "the game has ended before its last turn"
    return answer


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture)


def test_a_move_is_answered_with_the_picture_of_the_new_state() -> None:
    answer = play("@--/-#-/--.", "r")
    assert isinstance(answer, Observation)
    assert answer.text == ""
    (picture,) = answer.images
    assert (pixels(picture) == pixels(draw(read_level("-@-/-#-/--."), 32))).all()


def test_the_shortest_solution_wins_in_the_last_turn() -> None:
    answer = play("@--/-#-/--.", "r", "r", "d", "d")
    assert isinstance(answer, Done)
    assert answer.outcome == {"won": True, "moves": 4}


def test_a_box_pushed_to_the_goal_wins() -> None:
    answer = play("@$./---/---", "r")
    assert isinstance(answer, Done)
    assert answer.outcome == {"won": True, "moves": 1}


def test_a_game_is_lost_after_its_last_turn() -> None:
    answer = play("@$./---/---", "d")
    assert isinstance(answer, Done)
    assert answer.outcome == {"won": False, "moves": 1}


def test_a_spare_turn_repairs_one_mistake() -> None:
    answer = play("@-./---/---", "d", "u", "r", "r", spare_turns=2)
    assert isinstance(answer, Done)
    assert answer.outcome == {"won": True, "moves": 4}
    assert isinstance(lost := play("@-./---/---", "d", "u", "r", spare_turns=1), Done)
    assert not lost.outcome["won"]


@pytest.mark.parametrize("turn", ["", "x", "rr", "right", "R", "↑"])
def test_an_unreadable_turn_changes_nothing_and_costs_a_turn(turn: str) -> None:
    seen = play("@-./---/---", turn)
    assert isinstance(seen, Observation)
    assert (pixels(seen.images[0]) == pixels(draw(read_level("@-./---/---"), 32))).all()
    lost = play("@-./---/---", turn, "r")
    assert isinstance(lost, Done)
    assert lost.outcome == {"won": False, "moves": 2}


def test_blanks_around_a_letter_do_not_matter() -> None:
    assert isinstance(won := play("@$./---/---", " r\n"), Done)
    assert won.outcome["won"]


def test_rows_have_kinds_and_lengths_in_equal_parts() -> None:
    # 240 rows of two kinds and four lengths are 30 of each.
    assert Counter((row["kind"], row["moves"]) for row in ROWS) == {
        (kind, moves): 30 for kind in ("reach", "push") for moves in (1, 2, 3, 4)
    }


def test_a_row_has_a_shortest_solution_and_the_picture_of_its_level() -> None:
    for row in islice(ROWS, 40):
        level = read_level(row["level"])
        assert solution(level, 4) == row["answer"]
        assert len(row["answer"]) == row["moves"]
        assert row["kind"] == level.kind == ("push" if "$" in row["level"] else "reach")
        assert (pixels(row["image"]) == pixels(draw(level, 32))).all()


def test_equal_arguments_give_equal_levels_and_another_seed_others() -> None:
    first, again, other = (grid_game("train", num_prompts=50, seed=seed) for seed in (0, 0, 1))
    assert [row["level"] for row in first] == [row["level"] for row in again]
    assert [row["level"] for row in first] != [row["level"] for row in other]


def test_no_picture_of_a_test_game_occurs_in_training() -> None:
    grounds = {}
    for split in ("train", "test"):
        levels = [read_level(row["level"]) for row in grid_game(split, num_prompts=800)]
        assert {split_of(level) for level in levels} == {split}
        grounds[split] = {(level.walls, level.goal) for level in levels}
    # All pictures of a game have its walls and its goal.
    assert not grounds["train"] & grounds["test"]


def test_the_split_of_a_level_stays_while_it_is_played() -> None:
    for row in grid_game("train", num_prompts=50):
        level = read_level(row["level"])
        assert {split_of(moved(level, move)) for move in "udlr"} == {"train"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kinds": ()}, r"kinds must be reach, push or both, each once, got \(\)"),
        ({"kinds": ("reach", "reach")}, "each once"),
        ({"walls": 7}, "walls = 7, but size = 3 has room for 6: lower it or raise size"),
        ({"cell_pixels": 16}, "cell_pixels = 16 with size = 3 .* use 32, or an even size"),
        (
            {"size": 2, "walls": 0, "kinds": ("reach",), "max_moves": 3},
            "needs 3 moves: lower max_moves = 3 or raise size",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_remedy(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        grid_game("train", GameOptions(**options))


def test_a_wrong_split_and_no_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'test', got 'dev'"):
        grid_game("dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_prompts must be >= 1, got 0"):
        grid_game("train", num_prompts=0)


def demonstrated_game(prompt: Prompt, shown: Sequence[str | Observation]) -> Done:
    """Plays the demonstrated moves, and checks that the pictures between them are the environment's."""
    game = GridGameEnvironment(OPTIONS)
    game.reset(prompt)
    for move, seen in zip(shown[:-1:2], shown[1::2], strict=True):
        answer = game.step(Completion(text=str(move)))
        assert isinstance(seen, Observation)
        assert isinstance(answer, Observation)
        assert (pixels(seen.images[0]) == pixels(answer.images[0])).all()
    end = game.step(Completion(text=str(shown[-1])))
    assert isinstance(end, Done)
    return end


def test_demonstrations_are_whole_games_and_the_same_at_each_call() -> None:
    for prompt in PROMPTS[:40]:
        shown, again = (mostly_informed(prompt, OPTIONS) for _ in range(2))
        assert shown[::2] == again[::2]
        demonstrated_game(prompt, shown)


def test_the_more_skill_the_more_demonstrated_games_are_won() -> None:
    won = {
        skill: np.mean([demonstrated_game(p, mostly_informed(p, OPTIONS, skill)).outcome["won"] for p in PROMPTS])
        for skill in (0.0, 0.5, 1.0)
    }
    assert won[1.0] == 1
    assert 0 < won[0.0] < 0.2 < won[0.5] < 0.6
