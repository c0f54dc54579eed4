"""Both ends of the conversation between tests and the program under test, each in a sandbox of its own.

`code_tests` sends the text of this file into both sandboxes, which have only Python's standard library. The tests' end sends
requests (`name`, `call`, `getattr`, ...) and the program's end replies, in lines of JSON. The program never shares a process
with the tests, so it cannot read the expected values or change the verdict. Its replies arrive as data of Python's own types.
Functions and instances stay in the program's process, and the tests hold a `Remote` for each.
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
    """Converts a value to JSON; `number` returns a number for an object that is no data."""
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


def unpack(packed: Any, object_of: Callable[[int], Any]) -> Any:
    """Reverses `pack`; `object_of` returns the object with a number."""
    if isinstance(packed, list):
        return [unpack(item, object_of) for item in packed]
    if not isinstance(packed, dict):
        return packed
    [(kind, content)] = packed.items()
    return object_of(content) if kind == "object" else CONTAINERS[kind](unpack(content, object_of))


# ---- the program's end


def execute(source: bytes, namespace: dict[str, Any]) -> None:
    """Runs a program, which may use names of the usual modules without an import, as in LiveCodeBench, and print long numbers.

    `rewards.code.tests` also sends this function alone, so it needs nothing of this file.
    """
    import builtins
    import importlib
    import sys

    usual = {
        "collections": "deque defaultdict Counter OrderedDict namedtuple ChainMap",
        "heapq": "heappush heappop heapify heappushpop heapreplace nlargest nsmallest merge",
        "bisect": "bisect_left bisect_right insort insort_left insort_right",
        "math": "sqrt isqrt ceil floor trunc gcd lcm inf nan pi e factorial comb perm prod log log2 log10 exp hypot dist fabs fmod"
        " sin cos tan asin acos atan atan2 degrees radians isclose isnan isinf",
        "itertools": "accumulate chain combinations combinations_with_replacement permutations product groupby count cycle repeat"
        " islice starmap takewhile dropwhile zip_longest pairwise compress tee",
        "functools": "lru_cache cache reduce cmp_to_key partial wraps",
        "operator": "itemgetter attrgetter methodcaller add sub mul xor and_ or_",
        "typing": "List Dict Tuple Set FrozenSet Optional Union Any Deque DefaultDict Callable Iterable Iterator Sequence",
        "copy": "deepcopy",
        "string": "ascii_lowercase ascii_uppercase ascii_letters digits punctuation",
        "random": "randint randrange shuffle choice",
        "statistics": "mean median mode",
        "sys": "stdin stdout stderr setrecursionlimit maxsize",
        "datetime": "timedelta date",
        "io": "StringIO BytesIO",
        "json": "loads dumps",
        "re": "",
        "time": "",
    }
    module_of = {name: (module, name) for module, names in usual.items() for name in names.split()}
    module_of |= {module: (module, "") for module in usual}
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    code = compile(source, "program.py", "exec")
    used, blocks = set(), [code]
    while blocks:  # functions and classes are constants of the code around them
        block = blocks.pop()
        used |= set(block.co_names)
        blocks += [constant for constant in block.co_consts if isinstance(constant, type(code))]
    known = dict(builtins.__dict__)  # there, tests do not take them for the program's own
    for name in used & module_of.keys():
        module, member = module_of[name]
        found = importlib.import_module(module)
        known[name] = getattr(found, member) if member else found
    namespace["__builtins__"] = known
    exec(code, namespace)


def answer(channel: int, source: bytes) -> None:
    """Runs a program and answers requests until the other end hangs up; the program can change anything in this process."""
    program = types.ModuleType("program")  # not `__main__`, so that its part for scripts does not run
    sys.modules["program"] = program
    execute(source, program.__dict__)
    kept: list[Any] = []

    def number(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    with open(channel, "rb", closefd=False) as requests, open(channel, "wb", closefd=False) as replies:
        for line in requests:
            try:
                request, arguments, options = unpack(json.loads(line), kept.__getitem__)
                value = perform(program, request, arguments, options)
                # A function that returns None may change its arguments, as `sort_in_place(numbers)` does.
                changed = arguments[1:] if request == "call" and value is None else None
                reply = {"value": pack((value, changed), number)}
            except BaseException as error:
                reply = {"raised": type(error).__name__, "message": str(error)}
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()


def perform(program: types.ModuleType, request: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Carries out one request of the tests in the program's process."""
    first, *others = arguments
    if request == "name" and not hasattr(program, first) and hasattr(program, "Solution"):
        return getattr(program.Solution(), first)  # LeetCode's form
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
    """Connection to the program, used by the tests."""

    def __init__(self, channel: int) -> None:
        self._requests, self._replies = os.fdopen(channel, "wb", closefd=False), os.fdopen(channel, "rb", closefd=False)

    def send(self, request: str, *arguments: Any, **options: Any) -> Any:
        """Sends a request; returns the program's value, raises its exception, or ends this process if the program is gone."""
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
        for argument, new in zip(arguments[1:], changed or (), strict=False):
            overwrite(argument, new)
        return value

    @staticmethod
    def _number(value: Any) -> int:
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_number")
        raise TypeError(f"tests can pass data to a program, but no {type(value).__name__}")


class Remote:
    """An object in the program's process that is no data.

    It has no equality, containment or arithmetic: these would run in the program, which could then fake the comparison.
    """

    __slots__ = ("_number", "_program")
    __contains__ = None

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._program.send("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.send("setattr", self, name, value)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._program.send("call", self, *arguments, **options)

    def __getitem__(self, key: Any) -> Any:
        return self._program.send("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._program.send("setitem", self, key, value)

    def __len__(self) -> int:
        return self._program.send("len", self)

    def __bool__(self) -> bool:
        return self._program.send("bool", self)

    def __iter__(self) -> Any:
        return self._program.send("iter", self)

    def __next__(self) -> Any:
        return self._program.send("next", self)

    def __str__(self) -> str:
        return self._program.send("str", self)

    def __repr__(self) -> str:
        return self._program.send("repr", self)


def raised(name: str, message: str) -> Exception:
    """Returns an exception like the program's: of the same builtin class, or a RuntimeError."""
    kind = getattr(builtins, name, None)
    try:
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(message)
    except TypeError:
        pass  # its class takes other arguments than a message
    return RuntimeError(f"{name}: {message}")


def overwrite(argument: Any, new: Any) -> None:
    """Gives an argument the content that the program left in its copy."""
    if isinstance(argument, list) and isinstance(new, list):
        argument[:] = new
    elif isinstance(argument, dict | set) and type(argument) is type(new):
        argument.clear()
        argument.update(new)


def wanted(tree: ast.AST) -> list[str]:
    """Returns the names that tests take from the program.

    Builtins and modules of the standard library (`math.isclose`) come from Python, so that the program cannot replace a
    comparison. A builtin comes from the program only if tests name nothing else, as in `assert sum(10, 15) == 6`.
    """
    nodes = list(ast.walk(tree))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    defined = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    for node in nodes:
        if isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
            defined.add(node.name or "")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {name.asname or name.name.split(".")[0] for name in node.names}
    free = {node.id for node in names if not node.id.startswith("__")} - defined
    foreign = free - set(dir(builtins)) - modules(nodes)
    return sorted(foreign or (free if len(free) == 1 else ()))


def modules(nodes: list[ast.AST]) -> set[str]:
    """Returns the modules of the standard library that tests use, imported or not."""
    bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    return bases & sys.stdlib_module_names


def check(channel: int, source: bytes) -> bool:
    """Runs tests; returns whether they used the program and none of them failed."""
    program, tree = Program(channel), ast.parse(source)
    namespace: dict[str, Any] = {"__name__": "tests", "__is_one_of__": is_one_of, "__json__": json.loads}
    namespace |= {name: importlib.import_module(name) for name in modules(list(ast.walk(tree)))}
    found = {}
    for name in wanted(tree):
        try:
            found[name] = program.send("name", name)
        except AttributeError:
            continue  # the tests fail without it, unless Python has it
    exec(compile(tree, "tests.py", "exec"), namespace | found)
    return bool(found)


def is_one_of(value: Any, expected: list[Any], tolerance: float) -> bool:
    """Returns whether a value equals one of the expected values."""
    return any(same(value, each, tolerance) for each in expected)


def same(value: Any, expected: Any, tolerance: float) -> bool:
    """Returns whether a value equals an expected one that went through JSON: tuples are lists there, and keys are texts."""
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
    """Returns whether a number is within the tolerance, absolute or relative; for numbers below 1,000 tolerances only relative.

    An absolute tolerance would take 0 for the charge of an electron.
    """
    size = abs(expected)
    try:
        scale = size if 0 < size < 1000 * tolerance else max(1.0, size)
        return value == expected or abs(value - expected) <= tolerance * scale < math.inf
    except OverflowError:
        return False  # an integer beyond all floats


def main() -> None:
    """Runs one end: `answer CHANNEL_FD SOURCE_FD` for the program, `check CHANNEL_FD SOURCE_FD` for the tests."""
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
