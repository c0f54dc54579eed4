"""The command `sapo`: each subcommand is a module that `python -m` runs as well.

sapo train digit_sums --steps 20
sapo train my_run.toml --seed 1
sapo report runs/digit_sums
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import NoReturn

from rl.config.file import is_config_file, recipe_in, suggestion

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
COMPLETIONS: Mapping[str, str] = {
    "bash": """\
_sapo() { local IFS=$'\\n'; COMPREPLY=($(sapo complete "${COMP_WORDS[@]:1:COMP_CWORD}")); }
complete -o default -F _sapo sapo""",
    "zsh": """\
autoload -U +X bashcompinit && bashcompinit
_sapo() { local IFS=$'\\n'; COMPREPLY=($(sapo complete "${COMP_WORDS[@]:1:COMP_CWORD}")); }
complete -o default -F _sapo sapo""",
    "fish": "complete -c sapo -a '(sapo complete (commandline -opc)[2..-1] (commandline -ct))'",
}
"""Shell → what completes `sapo` in it."""


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
    elif name == "completion" and words and words[0] in COMPLETIONS:
        print(COMPLETIONS[words[0]])
    elif name == "completion":
        fail(f"sapo completion SHELL: choose {', '.join(COMPLETIONS)}")
    elif name == "complete":
        print("\n".join(completions(words)))
    else:
        fail(f"there is no subcommand {name}: {suggestion(name, ['train', *COMMANDS, 'completion'])}")


def train(words: Sequence[str]) -> None:
    """Runs a recipe by its name, by its file, or by a config file that names it."""
    if not words or words[0] in ("-h", "--help"):
        print(list_of_recipes())
        return
    try:
        recipe, module = found(words[0])
    except ValueError as error:
        fail(str(error))
    run(module, f"sapo train {recipe}", words if is_config_file(words[0]) else words[1:])


def found(word: str) -> tuple[str, str]:
    """Returns the recipe that a word of the command line means, and its module or script.

    Args:
        word: The recipe's name, its script, or a config file that has one of these.

    Raises:
        ValueError: There is no such recipe.
    """
    recipe = recipe_in(Path(word)) if is_config_file(word) else word
    known = recipes()
    if recipe in known:
        return recipe, f"recipes.{recipe}"
    if recipe.endswith(".py") and Path(recipe).is_file():
        return recipe, recipe
    raise ValueError(f"there is no recipe {recipe}: {suggestion(recipe, known)}")


def run(module: str, program: str, words: Sequence[str]) -> None:
    """Runs a module or a file as `python` does, under another name in its `--help`."""
    os.environ["SAPO_PROGRAM"] = program
    sys.argv[1:] = words
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def completions(words: Sequence[str]) -> list[str]:
    """Returns what the last word may become: a subcommand, a recipe, a config file or an option."""
    *before, start = words or [""]
    if not before:
        names: Iterable[str] = ["train", *COMMANDS, "completion"]
    elif before == ["train"] and not start.startswith("-"):
        names = [*recipes(), *(str(file) for file in sorted(Path().glob("*.*")) if is_config_file(str(file)))]
    elif before == ["completion"]:
        names = COMPLETIONS
    else:
        names = options(before) if start.startswith("-") else []
    return [name for name in names if name.startswith(start)]


def options(words: Sequence[str]) -> list[str]:
    """Returns the options of the recipe that a command line names; none for other subcommands."""
    try:
        module = found(words[1])[1] if words[0] == "train" else COMMANDS[words[0]]
    except (ValueError, KeyError, IndexError):  # words that are no command so far
        return []
    if not module.startswith("recipes."):
        return []
    os.environ["SAPO_COMPLETE"] = "1"
    with redirect_stdout(StringIO()) as printed:
        run(module, "sapo", [])
    return printed.getvalue().split()


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


def fail(sentence: str) -> NoReturn:
    """Ends the process with a sentence, as a mistake of the user."""
    from rl.cli import print_error
    from rl.signals.supervisor import USER_ERROR

    print_error(sentence)
    sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
