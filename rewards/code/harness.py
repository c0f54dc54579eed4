"""Both ends of a conversation between tests and the program that they are about, each in a sandbox of its own.

`code_tests` sends the text of this file there, where nothing but Python's standard library is. The end of the tests asks
(`name`, `call`, `getattr`, ...), the program's end answers, in lines of JSON. So the program never shares a process with the
tests: it cannot see what they expect, and cannot touch what they decide. What it answers arrives as plain data of exactly
Python's own types; what is no data, such as a function or an instance, stays where it is, and the tests hold a `Remote`.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import math
import os
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

DICTIONARIES = (dict, Counter, OrderedDict, defaultdict)  # equal to a dict of the same items, and sent as one
CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "bytes": bytes,
    "complex": lambda parts: complex(*parts),
}


def pack(value: Any, number: Callable[[Any], int]) -> Any:
    """Returns a value as JSON has it; `number` gives the number of what is no data."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [pack(item, number) for item in value]
    if kind in (tuple, set, frozenset, bytes):
        return {kind.__name__: [pack(item, number) for item in value]}
    if kind in DICTIONARIES:
        return {"dict": [[pack(key, number), pack(item, number)] for key, item in value.items()]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    return {"object": number(value)}


def unpack(packed: Any, thing: Callable[[int], Any]) -> Any:
    """Returns what was packed; `thing` gives what has a number."""
    if isinstance(packed, list):
        return [unpack(item, thing) for item in packed]
    if not isinstance(packed, dict):
        return packed
    [(kind, content)] = packed.items()
    return thing(content) if kind == "object" else CONTAINERS[kind](unpack(content, thing))


# ---- the program's end


def answer(channel: int, source: bytes) -> None:
    """Runs a program and does what it is asked to, until the other end hangs up. Nothing in here can be relied on."""
    sys.modules["program"] = program = types.ModuleType(
        "program"
    )  # not `__main__`: what it would do as a script is not asked for
    exec(compile(source, "program.py", "exec"), program.__dict__)
    kept: list[Any] = []

    def number(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    with open(channel, "rb", closefd=False) as requests, open(channel, "wb", closefd=False) as replies:
        for line in requests:
            try:
                request, arguments, options = unpack(json.loads(line), kept.__getitem__)
                value = perform(program, request, arguments, options)
                changed = (
                    arguments[1:] if request == "call" and value is None else None
                )  # as `sort_in_place(numbers)` does
                reply = {"value": pack((value, changed), number)}
            except BaseException as error:
                reply = {"raised": type(error).__name__, "message": str(error)}
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()


def perform(program: types.ModuleType, request: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Does what the tests ask for, in the program's own world."""
    first, *others = arguments
    if request == "name" and not hasattr(program, first) and hasattr(program, "Solution"):
        return getattr(program.Solution(), first)  # as LeetCode has it
    if request == "name":
        return getattr(program, first)
    if request == "call":
        return first(*others, **options)
    if request == "getitem":
        return first[others[0]]
    if request == "setitem":
        first[others[0]] = others[1]
        return None
    return getattr(builtins, request)(*arguments)


# ---- the tests' end


class Program:
    """The program, as the tests see it."""

    def __init__(self, channel: int) -> None:
        self._requests, self._replies = os.fdopen(channel, "wb", closefd=False), os.fdopen(channel, "rb", closefd=False)

    def ask(self, request: str, *arguments: Any, **options: Any) -> Any:
        """Returns what the program answers, raises what it raised, and gives up where it is gone."""
        packed = pack([request, list(arguments), options], self._number)
        try:
            self._requests.write(json.dumps(packed).encode() + b"\n")
            self._requests.flush()
            line = self._replies.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            os._exit(1)  # not by an exception, which a test may expect
        reply = json.loads(line)
        if "raised" in reply:
            raise raised(reply["raised"], str(reply["message"]))
        value, changed = unpack(reply["value"], lambda number: Remote(self, number))
        for mine, its in zip(arguments[1:], changed or (), strict=False):
            overwrite(mine, its)
        return value

    @staticmethod
    def _number(value: Any) -> int:
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_number")
        raise TypeError(f"tests can hand data to a program, and no {type(value).__name__}")


class Remote:
    """Something of the program's that is no data.

    It equals nothing, contains nothing and cannot be reckoned with, for then it would be the program that compares.
    """

    __slots__ = ("_number", "_program")
    __contains__ = None

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._program.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("setattr", self, name, value)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._program.ask("call", self, *arguments, **options)

    def __getitem__(self, key: Any) -> Any:
        return self._program.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._program.ask("setitem", self, key, value)

    def __len__(self) -> int:
        return self._program.ask("len", self)

    def __bool__(self) -> bool:
        return self._program.ask("bool", self)

    def __iter__(self) -> Any:
        return self._program.ask("iter", self)

    def __next__(self) -> Any:
        return self._program.ask("next", self)

    def __str__(self) -> str:
        return self._program.ask("str", self)

    def __repr__(self) -> str:
        return self._program.ask("repr", self)


def raised(name: str, message: str) -> Exception:
    """Returns an exception such as the program raised: of Python's own kinds, or a RuntimeError."""
    kind = getattr(builtins, name, None)
    try:
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(message)
    except TypeError:
        pass  # one that is not made of a message
    return RuntimeError(f"{name}: {message}")


def overwrite(mine: Any, its: Any) -> None:
    """Makes an argument what the program has left of its copy."""
    if isinstance(mine, list) and isinstance(its, list):
        mine[:] = its
    elif isinstance(mine, dict | set) and type(mine) is type(its):
        mine.clear()
        mine.update(its)


def wanted(tree: ast.AST) -> list[str]:
    """Returns the names that tests take from the program.

    Builtins and modules of the standard library (`math.isclose`) are always Python's own, lest the program say what is equal.
    Only where a builtin is all that tests name, as in `assert sum(10, 15) == 6`, is it the program's.
    """
    nodes = list(ast.walk(tree))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    for node in nodes:
        if isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
            own.add(node.name or "")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            own |= {name.asname or name.name.split(".")[0] for name in node.names}
    free = {node.id for node in names if not node.id.startswith("__")} - own
    foreign = free - set(dir(builtins)) - modules(nodes)
    return sorted(foreign or (free if len(free) == 1 else ()))


def modules(nodes: list[ast.AST]) -> set[str]:
    """Returns the modules of the standard library that tests take something from, imported or not."""
    bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    return bases & sys.stdlib_module_names


def check(channel: int, source: bytes) -> bool:
    """Runs tests, and says whether they took anything from the program and none of them failed."""
    program, tree = Program(channel), ast.parse(source)
    namespace: dict[str, Any] = {"__name__": "tests", "__is_one_of__": is_one_of, "__json__": json.loads}
    namespace |= {name: importlib.import_module(name) for name in modules(list(ast.walk(tree)))}
    found = {}
    for name in wanted(tree):
        try:
            found[name] = program.ask("name", name)
        except AttributeError:
            continue  # the tests will miss it, or have it from Python
    exec(compile(tree, "tests.py", "exec"), namespace | found)
    return bool(found)


def is_one_of(value: Any, wishes: list[Any], tolerance: float) -> bool:
    """Says whether a value is one of those that are right."""
    return any(same(value, wish, tolerance) for wish in wishes)


def same(value: Any, expected: Any, tolerance: float) -> bool:
    """Says whether a value is what JSON had to say of it: tuples are lists there, and keys are texts."""
    if isinstance(value, list | tuple) and isinstance(expected, list):
        return len(value) == len(expected) and all(same(*pair, tolerance) for pair in zip(value, expected, strict=True))
    if isinstance(value, dict) and isinstance(expected, dict):
        value = {str(key): item for key, item in value.items()}
        return value.keys() == expected.keys() and all(same(value[key], expected[key], tolerance) for key in expected)
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, float):
        return close(value, expected, tolerance)
    return value == expected


def close(value: float, expected: float, tolerance: float) -> bool:
    """Says whether a number is off by no more than the tolerance, as it is or relative to what is expected."""
    try:
        return value == expected or abs(value - expected) <= tolerance * max(1.0, abs(expected)) < math.inf
    except OverflowError:
        return False  # an integer beyond all floats


def main() -> None:
    end, channel, source_fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.set_int_max_str_digits(0)  # a program may return the factorial of 2,000
    with open(source_fd, "rb") as file:
        source = file.read()
    if end == "answer":
        answer(channel, source)
        return
    verdict = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # tests may print what the program returned
    if check(channel, source):
        os.write(verdict, b"passed")


if __name__ == "__main__":
    main()
