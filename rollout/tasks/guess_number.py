"""A game without pictures: guess a whole number from a range. Each answer is "higher" or "lower"."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rollout.types import Observation, Prompt


def guess_number(split: str, *, largest: int, num_prompts: int) -> list[Prompt]:
    """Returns games for `GuessNumber`. Their answers are the numbers from 1 to `largest` in turn.

    Args:
        split: Part of the prompts' ids. All splits have the same games.
        largest: The largest number.
        num_prompts: Games.

    Raises:
        ValueError: If a number is not positive.
    """
    if largest < 1 or num_prompts < 1:
        raise ValueError(f"largest and num_prompts must be >= 1, got {largest} and {num_prompts}")
    asked = [{"role": "user", "content": f"1-{largest}?"}]
    return [
        Prompt(
            id=f"guess_number-{split}-{i}", messages=asked, answer=str(1 + i % largest), columns={"largest": largest}
        )
        for i in range(num_prompts)
    ]


def guesses_at_random(prompt: Prompt, max_guesses: int) -> Sequence[str | Observation]:
    """Returns the turns of a game with random guesses, which ignore the answers."""
    rng, number, shown = random.Random(prompt.id), int(prompt.answer), list[str | Observation]()
    for _ in range(max_guesses):
        guess = rng.randint(1, prompt.columns["largest"])
        shown.append(str(guess))
        if guess == number:
            return shown
        shown.append(Observation(text="higher" if guess < number else "lower"))
    return shown[:-1]
