"""Config files: TOML, YAML or a run's `config.json`, whose options go before those of the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from rl.config.train import RECIPE

SUFFIXES = (".toml", ".yaml", ".yml", ".json")


def is_config_file(word: str) -> bool:
    """Returns True for a word of a command line that names a config file."""
    return not word.startswith("-") and word.endswith(SUFFIXES)


def read_config_file(file: Path) -> dict[str, Any]:
    """Returns a file's options, nested as in the file.

    Raises:
        ValueError: There is no such file, or it is not TOML, YAML or JSON by its name.
    """
    try:
        text = file.read_text(encoding="utf-8")
        options = _parsed(text, file.suffix)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except ValueError as error:  # tomllib's, json's, and that of a text that is not UTF-8
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{file} must have options with their values, got a {type(options).__name__}")
    return options


def _parsed(text: str, suffix: str) -> Any:
    if suffix == ".toml":
        return tomllib.loads(text)
    if suffix == ".json":
        return json.loads(text)
    import yaml  # late, since few files are YAML

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def recipe_in(file: Path) -> str:
    """Returns the recipe that a file names: a name, or a script's path, which is relative to the file.

    Raises:
        ValueError: It names none, or cannot be read.
    """
    recipe = read_config_file(file).get(RECIPE)
    if not recipe:
        raise ValueError(f'{file} names no recipe: add one, such as {RECIPE} = "digit_sums" or "my_recipe.py"')
    return str(file.parent / recipe) if str(recipe).endswith(".py") else str(recipe)


def command_line_of(options: Mapping[str, Any], config_type: type, file: Path) -> list[str]:
    """Returns the words by which a command line gives a file's options.

    Args:
        options: The file's options.
        config_type: The dataclass that has them.
        file: The file, for errors.

    Raises:
        ValueError: An option is not one of `config_type`'s. Names the nearest that is.
    """
    return list(_words({name: value for name, value in options.items() if name != RECIPE}, config_type, file))


def _words(options: Mapping[str, Any], config_type: type, file: Path, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(config_type)
    known = {field.name: hints[field.name] for field in dataclasses.fields(config_type) if field.init}
    for written, value in options.items():
        name = written.replace("-", "_")
        if name not in known:
            raise ValueError(f"{file}: there is no option {prefix}{written}: {suggestion(name, known, prefix)}")
        section = known[name] if dataclasses.is_dataclass(known[name]) else None
        if isinstance(section, type):
            if not isinstance(value, Mapping):
                raise ValueError(f"{file}: {prefix}{name} is a section with options of its own, got {value!r}")
            yield from _words(value, section, file, f"{prefix}{name}.")
        else:
            yield from _option(prefix + name, value, known[name])


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns the known name that is nearest to a mistyped one, as a question; all of them if none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"choose {', '.join(prefix + each for each in names)}"


def option_names(config_type: type, prefix: str = "", but_for: Collection[str] = ()) -> list[str]:
    """Returns the options of a config class as a command line has them."""
    hints = get_type_hints(config_type)
    names = ["--help"] * (not prefix)
    for field in dataclasses.fields(config_type):
        kind = hints[field.name]
        if field.name in but_for:
            continue
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            names += option_names(kind, f"{prefix}{field.name}.")
        else:
            names += [word.partition("=")[0] for word in _option(prefix + field.name, True, kind)]
            names += _option(prefix + field.name, False, kind) if kind is bool else ()
    return names


def _option(name: str, value: Any, kind: Any) -> Iterator[str]:
    flag = name.replace("_", "-")
    if kind is bool and isinstance(value, bool):
        section, dot, last = flag.rpartition(".")
        yield f"--{flag}" if value else f"--{section}{dot}no-{last}"
    elif isinstance(value, list) and (value or _is_tuple(kind)):
        yield f"--{flag}"
        yield from map(_text, value)
    else:
        yield f"--{flag}={_text(value)}"


def _is_tuple(kind: Any) -> bool:
    if get_origin(kind) in (Union, types.UnionType):
        return any(map(_is_tuple, get_args(kind)))
    return get_origin(kind) is tuple


def _text(value: Any) -> str:
    """Returns a value as a command line has it."""
    return json.dumps(value) if isinstance(value, dict) else str(value)
