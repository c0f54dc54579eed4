"""A game of several turns, seen as a picture: walk to the goal, or push a box onto it. Each turn is one move: u, d, l or r."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from rollout.config import Count, CountOrZero
from rollout.tasks.grid_levels import MOVES, Kind, Level, draw, moved, read_level, solution
from rollout.types import Completion, Done, Observation, Prompt

Split = Literal["train", "test"]

MOST_TRIES = 50_000
"""Random levels among which one of the wanted kind and length must be."""


@dataclass(frozen=True, kw_only=True)
class GameOptions:
    """The levels of the game, and its length."""

    size: Annotated[int, Ge(2)] = 3
    """Cells of a side of the square."""
    cell_pixels: Literal[16, 32] = 32
    """Pixels of a cell's sides. 32: a cell is an image token of Qwen3-VL. 16: four cells are a token. A turn then costs less, but
    the small policy needs several times as many updates to see them."""
    kinds: tuple[Kind, ...] = ("reach", "push")
    """Kinds of levels, in equal parts. reach: walk to the goal. push: push the box onto the goal."""
    walls: CountOrZero = 2
    """Most cells with a wall; a level has none to so many."""
    max_moves: Count = 4
    """Longest of the shortest solutions. Levels have solutions of 1 move up to so many, in equal parts."""
    spare_turns: CountOrZero = 0
    """A game is lost after as many turns as its shortest solution has moves, and so many more."""

    @property
    def max_turns(self) -> int:
        """Turns of the longest game."""
        return self.max_moves + self.spare_turns


def check_levels(options: GameOptions) -> None:
    """Checks choices that exclude each other.

    Raises:
        ValueError: A choice cannot work. Names the option, its value and the remedy.
    """
    if not options.kinds or len(set(options.kinds)) < len(options.kinds):
        raise ValueError(f"kinds must be reach, push or both, each once, got {options.kinds}")
    if options.size * options.cell_pixels % 32:
        raise ValueError(
            f"cell_pixels = {options.cell_pixels} with size = {options.size} makes a picture that is no multiple of 32 pixels: "
            "use 32, or an even size"
        )
    room = options.size**2 - (3 if "push" in options.kinds else 2)
    if options.walls > room:
        raise ValueError(
            f"walls = {options.walls}, but size = {options.size} has room for {room}: lower it or raise size"
        )


def grid_game(
    split: Split, options: GameOptions | None = None, *, num_prompts: int = 20_000, seed: int = 0
) -> Sequence[Mapping[str, Any]]:
    """Returns rows with a level each. Kinds and solutions' lengths take turns, so that the first rows have all of them.

    Args:
        split: `"train"` or `"test"`. They have no walls and goal in common, so no picture of a test game occurs in training.
        options: The levels. Default: those of `GameOptions`.
        num_prompts: Rows.
        seed: Seeds the draw.

    Returns:
        Columns `id`, `image`, `level` (its text), `kind`, `answer` (a shortest solution, a letter per move) and `moves` (its
        length). A level is drawn when its row is read. By default there are 2417 training and 607 test levels, so they repeat.

    Raises:
        ValueError: If there are no such levels.
    """
    options = options or GameOptions()
    check_levels(options)
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if num_prompts < 1:
        raise ValueError(f"num_prompts must be >= 1, got {num_prompts}")
    rows = _Rows(split, options, num_prompts, seed)
    for index in range(len(options.kinds) * options.max_moves):
        rows.level(index)
    return rows


class _Rows(Sequence[Mapping[str, Any]]):
    def __init__(self, split: Split, options: GameOptions, num_prompts: int, seed: int) -> None:
        self._split, self._options, self._num_prompts, self._seed = split, options, num_prompts, seed

    def __len__(self) -> int:
        return self._num_prompts

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        level, moves = self.level(index)
        return {
            "id": f"grid_game-{self._split}-{index}",
            "image": draw(level, self._options.cell_pixels),
            "level": str(level),
            "kind": level.kind,
            "answer": moves,
            "moves": len(moves),
        }

    def level(self, index: int) -> tuple[Level, str]:
        """Draws levels until one has the row's kind and length, and is of the split. Returns it with its solution."""
        options, rng = self._options, random.Random(f"{self._seed}-{self._split}-{index}")
        length, kind_number = divmod(index, len(options.kinds))
        kind, length = options.kinds[kind_number], 1 + length % options.max_moves
        for _ in range(MOST_TRIES):
            level = _random_level(options, kind, rng)
            if split_of(level) == self._split and len(moves := solution(level, length) or "") == length:
                return level, moves
        raise ValueError(
            f"found no {self._split} level of kind {kind}, size = {options.size} and walls = {options.walls} that needs "
            f"{length} moves: lower max_moves = {options.max_moves} or raise size"
        )


def _random_level(options: GameOptions, kind: Kind, rng: random.Random) -> Level:
    num_walls = rng.randint(0, options.walls)
    goal, player, *others = rng.sample(range(options.size**2), 2 + (kind == "push") + num_walls)
    box = others.pop() if kind == "push" else None
    return Level(size=options.size, walls=frozenset(others), goal=goal, player=player, box=box)


def split_of(level: Level) -> Split:
    """Returns the split of a level, which a hash of its walls and its goal decides: a fifth is for tests."""
    ground = f"{level.size} {sorted(level.walls)} {level.goal}"
    return "train" if hashlib.blake2b(ground.encode(), digest_size=8).digest()[0] % 5 else "test"


def to_prompt(row: Mapping[str, Any]) -> Prompt:
    """Returns the picture of the level, with the shortest question: a small policy reads bytes."""
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    return Prompt(
        id=row["id"],
        messages=[{"role": "user", "content": content}],
        images=[row["image"]],
        answer=row["answer"],
        task=row["kind"],
        columns={"level": row["level"], "moves": row["moves"]},
    )


class GridGameEnvironment:
    """Plays a level. A turn is one letter, and the answer is the picture of the new state.

    A blocked move and a turn that is no letter of `udlr` change nothing, and cost a turn. The outcome has `won` and the number of
    `moves`, blocked and unreadable ones included.

    Args:
        options: The options of the prompts' levels.
    """

    def __init__(self, options: GameOptions) -> None:
        self._spare, self._cell_pixels = options.spare_turns, options.cell_pixels

    def reset(self, prompt: Prompt) -> None:
        """Sets up the prompt's level."""
        self.level, self._moves = read_level(prompt.columns["level"]), 0
        self._turns = prompt.columns["moves"] + self._spare

    def step(self, completion: Completion) -> Observation | Done:
        """Makes a move."""
        self._moves += 1
        if (move := completion.text.strip()) in MOVES:
            self.level = moved(self.level, move)
        if self.level.won or self._moves == self._turns:
            return Done(outcome={"won": self.level.won, "moves": self._moves})
        return Observation(images=[draw(self.level, self._cell_pixels)])


def mostly_informed(prompt: Prompt, options: GameOptions, skill: float = 0.7) -> Sequence[str | Observation]:
    """Returns the turns of a demonstrated game, the same at each call.

    Args:
        prompt: The prompt of the game.
        options: The options of the prompt's level.
        skill: Probability that a move follows a shortest solution. Else it is random. The lower, the longer a policy needs until it
            sees anything: at 0.5, 100 updates of a cold start were not enough, at 0.7 less than 50 were.
    """
    rng, game = random.Random(prompt.id), GridGameEnvironment(options)
    game.reset(prompt)
    shown = list[str | Observation]()
    while True:
        best = solution(game.level, options.max_turns)
        move = best[0] if rng.random() < skill and best else rng.choice(list(MOVES))
        answer = game.step(Completion(text=move))
        shown.append(move)
        if isinstance(answer, Done):
            return shown
        shown.append(answer)
