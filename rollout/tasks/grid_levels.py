"""Levels of a grid game: their text, their rules, their shortest solutions and their pictures.

A level is written as Sokoban's are: `@` player, `$` box, `.` goal, `#` wall, `-` floor, `+` player on the goal, `*` box on the
goal. Its rows are joined by `/`. Cells are numbered row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

Kind: TypeAlias = Literal["reach", "push"]
Places: TypeAlias = tuple[int, int | None]
"""The cells of player and box; None without a box."""

MOVES: Final[Mapping[str, tuple[int, int]]] = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
"""The steps of each move, down and to the right."""
SYMBOLS: Final = "-#.@+$*"
FLOOR, WALL, GOAL, PLAYER, BOX = (0, 0, 0), (128, 128, 128), (0, 255, 0), (0, 0, 255), (255, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A state of the game. Walls and goal stay; player and box move."""

    size: int
    """Cells of a side."""
    walls: frozenset[int]
    """Cells that nothing enters."""
    goal: int
    """The cell that the box must come to, or the player where there is no box."""
    player: int
    """The player's cell."""
    box: int | None = None
    """The box's cell; None in levels of kind reach."""

    @property
    def kind(self) -> Kind:
        """`push` with a box, else `reach`."""
        return "reach" if self.box is None else "push"

    @property
    def won(self) -> bool:
        """True if the box, or the player without one, is on the goal."""
        return _is_won(self, (self.player, self.box))

    def symbol(self, cell: int) -> str:
        """Returns the character of a cell."""
        if cell in self.walls:
            return "#"
        free, with_player, with_box = ".+*" if cell == self.goal else "-@$"
        return with_player if cell == self.player else with_box if cell == self.box else free

    def __str__(self) -> str:
        """Returns the level's text."""
        symbols = "".join(map(self.symbol, range(self.size**2)))
        return "/".join(symbols[start : start + self.size] for start in range(0, len(symbols), self.size))


def read_level(text: str) -> Level:
    """Reads a level's text.

    Raises:
        ValueError: If it is not square, has an unknown character, or not one goal, one player and at most one box.
    """
    rows = text.split("/")
    symbols = "".join(rows)
    if any(len(row) != len(rows) for row in rows) or set(symbols) - set(SYMBOLS):
        raise ValueError(f"a level is a square of {SYMBOLS} with / between its rows, got {text!r}")
    players, boxes, goals = ([i for i, s in enumerate(symbols) if s in kind] for kind in ("@+", "$*", ".+*"))
    if (len(players), len(goals)) != (1, 1) or len(boxes) > 1:
        raise ValueError(f"a level has one player, one goal and at most one box, got {text!r}")
    walls = frozenset(i for i, symbol in enumerate(symbols) if symbol == "#")
    return Level(size=len(rows), walls=walls, goal=goals[0], player=players[0], box=boxes[0] if boxes else None)


def moved(level: Level, move: str) -> Level:
    """Returns the level after a move, a letter of `MOVES`. A blocked move changes nothing."""
    player, box = _places_after(level, (level.player, level.box), move)
    return replace(level, player=player, box=box)


def solution(level: Level, max_moves: int) -> str | None:
    """Returns the shortest sequence of moves that wins, by breadth-first search.

    Args:
        level: The level.
        max_moves: Longest sequence.

    Returns:
        A letter per move, or None if no sequence is so short. Of several shortest ones, the first in the order of `MOVES`.
    """
    start = (level.player, level.box)
    found: dict[Places, str] = {start: ""}
    waiting = [start]
    for places in waiting:  # grows on the way
        if _is_won(level, places):
            return found[places]
        if len(found[places]) == max_moves:
            continue
        for move in MOVES:
            after = _places_after(level, places, move)
            if after not in found:
                found[after] = found[places] + move
                waiting.append(after)
    return None


def draw(level: Level, cell_pixels: int) -> Image.Image:
    """Returns an RGB picture, with `cell_pixels` for each side of a cell."""
    side = range(level.size)
    rows = [[_cell_picture(level.symbol(row * level.size + column), cell_pixels) for column in side] for row in side]
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))


def _is_won(level: Level, places: Places) -> bool:
    player, box = places
    return (player if box is None else box) == level.goal


def _places_after(level: Level, places: Places, move: str) -> Places:
    player, box = places
    target = _beside(level.size, player, move)
    if target is None or target in level.walls:
        return places
    if target != box:
        return target, box
    beyond = _beside(level.size, target, move)
    return places if beyond is None or beyond in level.walls else (target, beyond)


@cache
def _beside(size: int, cell: int, move: str) -> int | None:
    """Returns the neighbour of a cell, or None at the edge."""
    down, right = MOVES[move]
    row, column = cell // size + down, cell % size + right
    return row * size + column if 0 <= row < size and 0 <= column < size else None


@cache
def _cell_picture(symbol: str, pixels: int) -> np.ndarray:
    """Returns [pixels, pixels, 3] uint8: a goal fills its cell behind what is on it, a player is a disc, a box a square."""
    ground = WALL if symbol == "#" else GOAL if symbol in ".+*" else FLOOR
    picture = Image.new("RGB", (pixels, pixels), ground)
    margin = pixels // 8
    inner = (margin, margin, pixels - 1 - margin, pixels - 1 - margin)
    if symbol in "@+":
        ImageDraw.Draw(picture).ellipse(inner, fill=PLAYER)
    if symbol in "$*":
        ImageDraw.Draw(picture).rectangle(inner, fill=BOX)
    return np.asarray(picture)
