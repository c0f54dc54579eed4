"""Trains a small Qwen3-VL on a game of several turns that it sees: walk to the goal, or push a box onto it.

Each turn is one letter, and the answer is the picture of the new state. A won game has the reward 1, a lost one 0. The cold start
demonstrates games in which seven of ten moves follow a shortest solution and the others are random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rewards import Score
from rl.cli import main
from rl.config import ColdStartConfig, EvalConfig, OptimizerConfig, RolloutConfig, SmallRecipe
from rollout import Completion, Prompt
from rollout.tasks.grid_game import GameOptions

TOKEN_PIXELS = 32
"""Pixels of an image token's sides."""
PROMPT_MARKS, ANSWER_MARKS = 8, 7
"""Tokens around a picture, in the small policy's prompt and between two turns."""


@dataclass(frozen=True, kw_only=True)
class GridGame(GameOptions, SmallRecipe):
    """SAPO on a game of several turns with pictures."""

    run_dir: Path = Path("runs/grid_game")
    """Folder for config, metrics, samples and checkpoints."""
    steps: int = 60
    """Steps: each one generates, scores, learns and syncs."""
    cold_start: ColdStartConfig = ColdStartConfig(updates=300)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    rollout: RolloutConfig = RolloutConfig(
        dtype="float32",
        max_tokens=72,
        max_turn_tokens=4,
        max_turns=4,
        max_images=4,
        max_model_len=96,
    )
    eval: EvalConfig = EvalConfig(num_prompts=300)


def won(prompt: Prompt, completion: Completion) -> Score:
    """1 for a won game; the number of moves is logged and not rewarded."""
    outcome = completion.outcome
    return Score(reward=float(outcome.get("won", False)), parts={"moves": float(outcome.get("moves", 0))})


def check_room(config: GridGame) -> None:
    """Checks that a whole game of the small policy fits the limits of its engines.

    Raises:
        ValueError: A limit is too low. Names all that are, with the values they need.
    """
    turns, rollout = config.max_turns, config.rollout
    picture = (config.size * config.cell_pixels // TOKEN_PIXELS) ** 2
    tokens = turns * (rollout.max_turn_tokens or 2) + (turns - 1) * (picture + ANSWER_MARKS)
    needs = {
        "max_turns": turns,
        "max_images": turns,
        "max_tokens": tokens,
        "max_model_len": picture + PROMPT_MARKS + max(tokens, rollout.max_tokens),
    }
    if low := [f"rollout.{name} >= {need}" for name, need in needs.items() if getattr(rollout, name) < need]:
        raise ValueError(f"a game with size = {config.size} and {turns} turns needs {', '.join(low)}")


def run(config: GridGame) -> None:
    """Cold start, then SAPO."""
    # Late imports: `--help` and mistyped options do not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy
    from rollout.data.prompts import prompts_from
    from rollout.tasks.grid_game import GridGameEnvironment, grid_game, mostly_informed, to_prompt

    check_room(config)
    prompts = prompts_from(grid_game("train", config), to_prompt)
    held_out = prompts_from(grid_game("test", config, num_prompts=2000), to_prompt)
    config = with_start_policy(config, prompts, partial(mostly_informed, options=config))
    environment = partial(GridGameEnvironment, config)
    print_result(train(config, prompts=prompts, reward=won, eval_prompts=held_out, environment=environment))


if __name__ == "__main__":
    main(run, GridGame, __doc__)
