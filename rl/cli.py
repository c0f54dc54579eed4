"""The command line of every recipe: options from a config class, errors as one sentence."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from rewards.loading import load_reward
from rl.checkpoint import starting_point
from rl.config import TrainConfig, check_config
from rl.placement import settle
from rl.types import RunStopped

C = TypeVar("C")


def main(run: Callable[[C], object], config_type: type[C], description: str | None = None) -> None:
    """Runs a recipe from the command line.

    A ValueError is the user's to mend: it is printed as one sentence and ends the program with status 2. Anything else keeps
    its traceback; `RL_TRACEBACK=1` shows it for ValueErrors too.

    Args:
        run: The recipe.
        config_type: A dataclass; its fields and their docstrings become the options of `--help`.
        description: The head of `--help`.
    """
    config = tyro.cli(config_type, prog=_program(), description=description, config=(tyro.conf.AvoidSubcommands,))
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)]
    )
    try:
        if isinstance(config, TrainConfig):
            check_options(config)
        run(config)
    except (ValueError, RunStopped) as error:
        if os.environ.get("RL_TRACEBACK"):
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def check_options(config: TrainConfig) -> None:
    """Refuses what is wrong whatever the data, in a second: a recipe may spend minutes before it calls train().

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    check_config(settle(config))
    starting_point(config)
    if config.reward:
        load_reward(config.reward)


def _program() -> str | None:
    """How the recipe was called, for `--help`: `python -m recipes.digit_sums`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else None
