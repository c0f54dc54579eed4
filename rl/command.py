"""The command `sapo`: each subcommand is a module that `python -m` runs as well.

sapo train digit_sums --steps 20
sapo train my_run.toml --seed 1
sapo report runs/digit_sums
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from rl.config.file import is_config_file, recipe_in

COMMANDS: Mapping[str, str] = {
    "evaluate": "recipes.evaluate",
    "measure": "recipes.measure_pass_rate",
    "select": "recipes.select",
    "cold-start": "recipes.cold_start",
    "check-data": "recipes.check_data",
    "check-reward": "rewards.check",
    "checkpoints": "rl.checkpoints",
    "report": "rl.report",
    "doctor": "rl.doctor",
    "repair": "rl.hardware.repair",
}
"""Subcommand → the module that it runs. `train` runs the recipes that are no subcommand."""


def main() -> None:
    """Runs a subcommand."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"sapo-rl {version('sapo-rl')}")
    elif name == "train":
        train(words)
    elif name in COMMANDS:
        run(COMMANDS[name], f"sapo {name}", words)
    else:
        fail(unknown("subcommand", name, ["train", *COMMANDS]))


def train(words: Sequence[str]) -> None:
    """Runs a recipe by its name, by its file, or by a config file that names it."""
    if not words or words[0] in ("-h", "--help"):
        print(list_of_recipes())
        return
    recipe, rest = words[0], list(words[1:])
    if is_config_file(recipe):
        file, rest = Path(recipe), list(words)
        try:
            recipe = recipe_in(file)
        except ValueError as error:
            fail(str(error))
    known = recipes()
    if recipe in known:
        run(f"recipes.{recipe}", f"sapo train {recipe}", rest)
    elif recipe.endswith(".py") and Path(recipe).is_file():
        run(recipe, f"sapo train {recipe}", rest)
    else:
        fail(unknown("recipe", recipe, known))


def run(module: str, program: str, words: Sequence[str]) -> None:
    """Runs a module or a file as `python` does, under another name in its `--help`."""
    os.environ["SAPO_PROGRAM"] = program
    sys.argv[1:] = words
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def recipes() -> dict[str, str]:
    """Returns the first sentence of each recipe by its name, and imports none."""
    subcommands = {module.rpartition(".")[2] for module in COMMANDS.values()}
    folders = importlib.import_module("recipes").__path__
    files = sorted(file for folder in folders for file in Path(folder).glob("*.py"))
    return {file.stem: headline(file) for file in files if file.stem not in subcommands | {"__init__"}}


def headline(file: Path) -> str:
    """Returns the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def overview() -> str:
    """Returns the text of `sapo --help`."""
    files = {name: importlib.util.find_spec(module) for name, module in COMMANDS.items()}
    lines = {name: headline(Path(spec.origin)) for name, spec in files.items() if spec and spec.origin}
    head = "usage: sapo SUBCOMMAND [options]\n\nRL post-training of vision-language models with SAPO.\n"
    train = {"train": "Runs a recipe, by its name or by a config file: `sapo train --help` lists them."}
    return f"{head}\n{table((train | lines).items())}\n\n`sapo SUBCOMMAND --help` has the options. `sapo --version`."


def list_of_recipes() -> str:
    """Returns the text of `sapo train --help`."""
    head = "usage: sapo train RECIPE|FILE.toml|FILE.yaml|config.json|FILE.py [options]\n"
    return f"{head}\n{table(recipes().items())}\n\n`sapo train RECIPE --help` has the options."


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Returns lines of two columns."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Returns a sentence on a name that is not known, with the nearest that is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"there is no {what} {name}: " + (f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}")


def fail(sentence: str) -> NoReturn:
    """Ends the process with a sentence, as a mistake of the user."""
    from rl.cli import print_error
    from rl.signals.supervisor import USER_ERROR

    print_error(sentence)
    sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
