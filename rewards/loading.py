"""Loader of a user's function, a reward or an objective, from a Python file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.workers.call import describe


class FileFunction:
    """A function that keeps the path of its file.

    It is pickled as path and name, and unpickling loads the file again. Its module-level state (caches, a model, compiled
    expressions) then exists in every worker process, and none of it has to be picklable.
    """

    def __init__(self, path: Path, function: Callable[..., Any], name: str, kind: str) -> None:
        self._path, self._kind, self.__name__ = path, kind, name
        self.__wrapped__ = function  # `inspect.signature` reads it

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__wrapped__(*args, **options)

    def __reduce__(self) -> tuple[object, ...]:
        return load_function, (f"{self._path}:{self.__name__}", self._kind)


def load_reward(spec: str) -> FileFunction:
    """Returns the reward function of `FILE.py:FUNCTION`; see `load_function`."""
    return load_function(spec, "reward")


def load_function(spec: str, kind: str) -> FileFunction:
    """Returns the function of `FILE.py:FUNCTION`; the file may import its neighbours.

    Args:
        spec: File and function.
        kind: The function's purpose, for errors: `"reward"`.

    Raises:
        ValueError: The text has no colon, the file does not exist or raises when it is run, or it has no such function.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file or not name:
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"{article} {kind} is given as FILE.py:FUNCTION, for example my_{kind}.py:score, got {spec!r}")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{kind} {spec!r}: there is no file {path}; give the path of a Python file")
    module = _run(path, kind)
    if not hasattr(module, name):
        names = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise ValueError(
            f"{kind} {spec!r}: {path} defines no {name!r}; it defines {', '.join(names) or 'no functions'}"
        )
    function = getattr(module, name)
    if not callable(function):
        raise ValueError(f"{kind} {spec!r}: {name!r} is a {type(function).__name__}; name a function of {path}")
    return FileFunction(path, function, name, kind)


def _run(path: Path, kind: str) -> ModuleType:
    """Imports a file under a unique name, as a reward file may be called `rewards.py` or `types.py`."""
    name = f"{kind}_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be run as Python; name a file that ends in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that the file's neighbours shadow nothing
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look up their module in it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{kind} file {path} raised {describe(error)} (line {_line(path, error)})") from error
    return module


def _line(path: Path, error: BaseException) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
