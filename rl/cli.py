"""The command line of every recipe: a config file and options, by a config class; errors as one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from rl.config import RunOptions, TrainConfig
from rl.config.file import command_line_of, is_config_file, option_names, read_config_file
from rl.hardware.presets import PRESETS, Sized, print_plan, with_preset
from rl.signals.stopping import STATUS_OF_SIGNAL, STOP
from rl.signals.supervisor import USER_ERROR, needs_supervisor, number_of_start, supervise
from rl.types import LearnerFailed, RunStopped

C = TypeVar("C")


def main(run: Callable[[C], object], config_type: type[C], description: str | None = None) -> None:
    """Runs a recipe from the command line.

    A ValueError is a mistake of the user: it is printed as one sentence and ends the program with status 2. So is a RunStopped,
    which another start would repeat. A LearnerFailed is printed, too, with status 1: another start may help. Other errors keep
    their traceback; `RL_TRACEBACK=1` shows it for all.

    Args:
        run: The recipe.
        config_type: A dataclass; its fields and their docstrings become the options of `--help`.
        description: The head of `--help`.
    """
    if os.environ.get("SAPO_COMPLETE"):  # a shell completes a word
        print("\n".join(option_names(config_type, but_for=_positional(config_type))))
        return
    try:
        config = parse(config_type, sys.argv[1:], description)
    except ValueError as error:
        print_error(str(error))
        sys.exit(USER_ERROR)
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)]
    )
    if isinstance(config, RunOptions) and not getattr(config, "plan", False):
        if needs_supervisor():
            command = [sys.executable, *sys.orig_argv[1:]]
            restarts = max(0, config.restarts)  # the run refuses a negative number
            sys.exit(supervise(command, stop_timeout=config.stop_timeout, restarts=restarts))
        if number_of_start():
            config = replace(config, resume="auto")
    with STOP.handled():
        _run(run, config)


def _run(run: Callable[[C], object], config: C) -> None:
    """Runs a recipe. Errors of the user and signals become an exit status."""
    try:
        if getattr(config, "plan", False):
            print_plan(cast(Sized, config), Console())
            return
        if isinstance(config, TrainConfig):
            from rl.preflight import check_options  # late: `--help` does not wait for what a run needs

            check_options(config)
        run(config)
    except (ValueError, RunStopped, LearnerFailed) as error:
        if os.environ.get("RL_TRACEBACK"):
            raise
        print_error(str(error))
        sys.exit(1 if isinstance(error, LearnerFailed) else USER_ERROR)
    except KeyboardInterrupt:  # Ray's calls raise it without the signal's number
        number = STOP.received or signal.SIGINT
        remedy = "; --resume auto goes on" if isinstance(config, RunOptions) else ""
        Console(stderr=True).print(f"stopped by {signal.Signals(number).name}{remedy}", highlight=False)
        sys.exit(STATUS_OF_SIGNAL + number)


def print_error(sentence: str) -> None:
    """Prints a sentence to the terminal, as an error."""
    Console(stderr=True).print(f"[bold red]error:[/] {escape(sentence)}", highlight=False, soft_wrap=True)


def parse(config_type: type[C], arguments: Sequence[str], description: str | None = None) -> C:
    """Parses the command line, over the options of a config file if that is the first word; with `--preset`, over that preset's.

    Where the first word has a meaning of its own, such as a file of data, it is no config file.

    Raises:
        ValueError: The config file cannot be read, or has an option that there is not.
    """
    if arguments and is_config_file(arguments[0]) and not _positional(config_type):
        file = Path(arguments[0])
        arguments = [*command_line_of(read_config_file(file), config_type, file), *arguments[1:]]
    default: Any = None
    if hasattr(config_type, "of_size"):
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset", nargs="?")
        name = first.parse_known_args(arguments)[0].preset
        if name in PRESETS:  # `small` has no defaults of its own; an unknown name is an error below
            default = with_preset(cast(Any, config_type)(), name)
    return tyro.cli(
        config_type,
        prog=_program(),
        description=description,
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
        **({} if default is None else {"default": default}),
    )


def _positional(config_type: type) -> set[str]:
    """Returns the fields that a command line gives without their names."""
    hints = get_type_hints(config_type, include_extras=True)
    return {name for name, hint in hints.items() if tyro.conf.Positional in getattr(hint, "__metadata__", ())}


def _program() -> str | None:
    """The command for `--help`: `python -m recipes.digit_sums`, or what `sapo` has set."""
    if program := os.environ.get("SAPO_PROGRAM"):
        return program
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else None
