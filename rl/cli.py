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
    config = tyro.cli(config_type, description=description, config=(tyro.conf.AvoidSubcommands,))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)])
    try:
        run(config)
    except (ValueError, RunStopped) as error:
        if os.environ.get("RL_TRACEBACK"):
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
