"""Trains a small policy on a game: guess a number from 1 to 7 in three turns. Each answer is higher or lower.

The cold start follows the rules and guesses at random, which wins about a third of the games. Bisection wins all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rewards import Score
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, OptimizerConfig, RolloutConfig, SmallRecipe
from rollout import Completion, Prompt


@dataclass(frozen=True, kw_only=True)
class GuessNumberConfig(SmallRecipe):
    """SAPO on a game of several turns."""

    run_dir: Path = Path("runs/guess_number")
    """Folder for config, metrics, samples and checkpoints."""
    steps: int = 60
    """Steps: each one generates, scores, learns and syncs."""
    largest: int = 7
    """Largest number; the smallest is 1."""
    max_guesses: int = 3
    """Guesses after which the game is lost."""
    cold_start: ColdStartConfig = ColdStartConfig(updates=60)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=64, max_turn_tokens=4, max_model_len=128)
    eval: EvalConfig = EvalConfig(num_prompts=14, num_samples=16)


def won(prompt: Prompt, completion: Completion) -> Score:
    """1 for a won game."""
    outcome = completion.outcome
    return Score(reward=float(outcome.get("won", False)), parts={"guesses": float(outcome.get("guesses", 0))})


def run(config: GuessNumberConfig) -> None:
    """Cold start, then SAPO."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy
    from rollout.environments import GuessNumber
    from rollout.tasks.guess_number import guess_number, guesses_at_random

    prompts = guess_number("train", largest=config.largest, num_prompts=2000)
    games = guess_number("test", largest=config.largest, num_prompts=2000)
    guesses = partial(guesses_at_random, max_guesses=config.max_guesses)
    config = with_start_policy(config, prompts, guesses)
    environment = partial(GuessNumber, config.max_guesses)
    print_result(train(config, prompts=prompts, reward=won, eval_prompts=games, environment=environment))


if __name__ == "__main__":
    main(run, GuessNumberConfig, __doc__)
