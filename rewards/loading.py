"""A user's reward function, from a file of the user's own."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from rewards.checking import describe
from rewards.types import Score, Verifier
from rollout.types import Completion, Prompt


class FileReward:
    """A reward function that knows the file it came from.

    It is pickled as file and name, and loaded afresh where it is unpickled: the file's own module-level state (caches,
    a model, compiled expressions) then exists in every worker process, and none of it has to be picklable.
    """

    def __init__(self, path: Path, function: Verifier, name: str) -> None:
        self._path, self._function, self.__name__ = path, function, name

    def __call__(self, prompt: Prompt, completion: Completion) -> float | Score:
        return self._function(prompt, completion)

    def __reduce__(self) -> tuple[object, ...]:
        return load_reward, (f"{self._path}:{self.__name__}",)


def load_reward(spec: str) -> FileReward:
    """Returns the reward function that `FILE.py:FUNCTION` names; the file may import its neighbours.

    Raises:
        ValueError: The text has no colon, the file does not exist or raises when it is run, or it defines no such
            function.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file or not name:
        raise ValueError(f"a reward is given as FILE.py:FUNCTION, for example my_reward.py:score, got {spec!r}")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"reward {spec!r}: there is no file {path}; give the path of a Python file")
    module = _run(path)
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise ValueError(f"reward {spec!r}: {path} defines no {name!r}; it defines {', '.join(own) or 'no functions'}")
    function = getattr(module, name)
    if not callable(function):
        raise ValueError(f"reward {spec!r}: {name!r} is a {type(function).__name__}; name a function of {path}")
    return FileReward(path, function, name)


def _run(path: Path) -> ModuleType:
    """Imports a file under a name that no module has: a reward file may be called `rewards.py` or `types.py`."""
    name = f"reward_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be run as Python; name a file that ends in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that the neighbours of the file shadow nothing
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up in there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"reward file {path} raised {describe(error)} (line {_line(path, error)})") from error
    return module


def _line(path: Path, error: BaseException) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
