"""The command line of every recipe: options from a config class, errors as one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from rewards.loading import load_reward
from rl.config import TrainConfig, check_config
from rl.hardware.placement import resolve_placement
from rl.hardware.presets import PRESETS, Sized, print_plan, with_preset
from rl.run_dir.checkpoint import starting_point
from rl.types import RunStopped
from rollout.data.selection import read_selection

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
    config = parse(config_type, sys.argv[1:], description)
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)]
    )
    try:
        if getattr(config, "plan", False):
            print_plan(cast(Sized, config), Console())
            return
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


def parse(config_type: type[C], arguments: Sequence[str], description: str | None = None) -> C:
    """Makes a config of the command line; where it names a preset, of that preset's defaults."""
    default: Any = None
    if hasattr(config_type, "of_size"):
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset", nargs="?")
        name = first.parse_known_args(arguments)[0].preset
        if name in PRESETS:  # another is small, or a mistake that is told below, with all others
            default = with_preset(cast(Any, config_type)(), name)
    return tyro.cli(
        config_type,
        prog=_program(),
        description=description,
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
        **({} if default is None else {"default": default}),
    )


def check_options(config: TrainConfig) -> None:
    """Refuses what is wrong whatever the data, in a second: a recipe may spend minutes before it calls train().

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    check_config(resolve_placement(config))
    starting_point(config)
    if config.reward:
        load_reward(config.reward)
    if config.selection:
        read_selection(config.selection)


def _program() -> str | None:
    """How the recipe was called, for `--help`: `python -m recipes.digit_sums`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else None
