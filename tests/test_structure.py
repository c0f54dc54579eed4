"""The structure of the code: directions of imports, places of Ray and vLLM, sizes, and who knows `TrainConfig`.

A room is a file or a folder directly inside a package.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rl", "rollout", "rewards", "policies", "recipes")

SIBLINGS = {
    "recipes": {"rl", "rollout", "rewards", "policies"},
    "rl": {"rollout", "rewards", "policies"},
    "rewards": {"rollout.types"},
    "rollout": set(),
    "policies": set(),
}
"""Packages and modules that a package may import besides itself."""

ROOMS = {
    "rl": """
        command cli report checkpoints doctor loop run recovery watchdog metrics evaluation sft curation generation
        learner preflight hardware run_dir signals samples distillation objectives corrections advantages sapo data config
        types
        """.split(),
    "rollout": "tasks environments pool weights processes engine data ray_calls rendering cluster weight_sums types config".split(),
    "rewards": "check trial judge llm_judge code trl loading compose verifiers workers text metrics types".split(),
    "policies": """
        sharding response_logprobs frozen small model_sizes loading export lora inputs packing logprobs routing fused_norms
        vision_tower dtensor weight_files host_copies
        """.split(),
}
"""Imports inside a package point from a room to one further down its list."""

ALGORITHM = ("sapo", "objectives", "advantages", "corrections", "distillation")
ALGORITHM_IMPORTS = {"torch", "numpy", "rl.config", "rewards.types", "rewards.loading"}

RAY = (
    "rl/learner/group.py",
    "rl/learner/calls.py",
    "rollout/ray_calls.py",
    "rollout/processes.py",
    "rollout/cluster.py",
    "rollout/pool/",
    "rollout/weights/",
)
VLLM = ("rollout/engine/", "rollout/weights/")
KNOW_TRAIN_CONFIG = ("rl/loop.py", "rl/run.py", "rl/preflight.py", "rl/hardware/")

EXCEPTIONS = {
    "rl/config/train.py TrainConfig": "defines it, and checks it as a whole",
    "rl/cli.py TrainConfig": "runs the checks of a config before a recipe's cold start",
    "policies/packing.py packed_attention": "transformers calls attention functions with these parameters",
    "rewards/judge.py judge": "public: the endpoint, the rubric and the limits of a judge",
    "rollout/data/prompts.py column_mapping": "public: one parameter per column",
}
"""Every exception to a rule below, with its reason; at most five."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports at run time, inside functions too."""
    waiting = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def is_within(module: str, parents: set[str]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    return len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_packages_import_only_the_siblings_that_they_may():
    for path in files(*PACKAGES):
        own = name_of(path).split("/")[0]
        for module in imports(path):
            if module.split(".")[0] in {*PACKAGES, "tests", "bench"} - {own}:
                assert is_within(module, SIBLINGS[own]), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("package", ROOMS)
def test_imports_inside_a_package_point_down_its_list_of_rooms(package: str):
    rooms = ROOMS[package]
    found = {path.stem if path.is_file() else path.name for path in (ROOT / package).iterdir()}
    assert found - {"__init__", "__pycache__", "README", "py"} == set(rooms)  # py.typed
    for path in files(package):
        here = name_of(path).removesuffix(".py").split("/")[1]
        if here == "__init__":  # the package's public names
            continue
        for module in imports(path):
            if module.startswith(f"{package}.") and (there := room_of(module)) in rooms and there != here:
                assert rooms.index(there) > rooms.index(here), f"{name_of(path)} imports {module}, which is further up"


@pytest.mark.parametrize("name", ALGORITHM)
def test_the_algorithm_imports_tensors_its_options_and_scores_alone(name: str):
    allowed = ALGORITHM_IMPORTS | {f"rl.{other}" for other in ALGORITHM}
    folder = ROOT / "rl" / name
    for path in files(f"rl/{name}") if folder.is_dir() else [folder.with_suffix(".py")]:
        for module in imports(path):
            if module.split(".")[0] in (*PACKAGES, "torch", "numpy", "transformers", "ray", "vllm"):
                assert is_within(module, allowed), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize(("library", "places"), [("ray", RAY), ("vllm", VLLM)])
def test_ray_and_vllm_are_imported_only_in_their_places(library: str, places: tuple[str, ...]):
    users = [name_of(path) for path in files(*PACKAGES) if library in {m.split(".")[0] for m in imports(path)}]
    assert [name for name in users if not name.startswith((*places, "rl/doctor.py"))] == []
    assert users, "the rule has something to check"


def test_types_import_the_standard_library_and_numpy_alone():
    for path in files(*PACKAGES):
        if path.name == "types.py":
            heavy = {"torch", "vllm", "ray", "transformers"} & {module.split(".")[0] for module in imports(path)}
            assert not heavy, f"{name_of(path)} imports {heavy}"


def test_only_the_loop_its_opening_and_the_hardware_know_the_whole_config():
    for path in files("rl", "rollout", "rewards", "policies"):
        name = name_of(path)
        annotations = [
            ast.unparse(argument.annotation)
            for function in functions(path)
            for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
            if argument.annotation is not None
        ]
        named = any("TrainConfig" in annotation for annotation in annotations)
        named |= any(module.endswith(".TrainConfig") for module in imports(path)) and path.name != "__init__.py"
        if named and not name.startswith(KNOW_TRAIN_CONFIG):
            assert f"{name} TrainConfig" in EXCEPTIONS, f"{name} takes all of TrainConfig: take the options it needs"


def test_files_have_at_most_400_lines_and_functions_60():
    for path in files(*PACKAGES, "tests", "bench", "setup"):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 400, f"{name_of(path)} has {lines} lines"
    for path in files(*PACKAGES, "bench", "setup"):
        for function in functions(path):
            length = (function.end_lineno or 0) - function.lineno + 1
            assert length <= 60, f"{name_of(path)} {function.name}() has {length} lines"


def test_functions_have_at_most_6_parameters_losses_excepted():
    for path in files(*PACKAGES):
        for function in functions(path):
            if num_parameters(function) > 6 and not function.name.endswith("_loss"):
                assert f"{name_of(path)} {function.name}" in EXCEPTIONS, (
                    f"{name_of(path)} {function.name}() takes {num_parameters(function)} parameters: make a data class"
                )


def test_folders_have_at_most_18_files():
    folders = Counter(path.parent for path in files(*PACKAGES) if path.name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > 18} == {}


def test_the_loop_fits_one_screen_and_an_update_25_lines():
    lengths = {
        function.name: (function.end_lineno or 0) - function.lineno + 1
        for path in ("rl/loop.py", "rl/learner/learner.py")
        for function in functions(ROOT / path)
    }
    assert lengths["train"] + lengths["train_step"] <= 90
    assert lengths["_update"] <= 25


def test_there_are_at_most_five_exceptions_and_each_is_needed():
    assert len(EXCEPTIONS) <= 5
    for exception in EXCEPTIONS:
        name, what = exception.split()
        text = (ROOT / name).read_text(encoding="utf-8")
        if what == "TrainConfig":
            assert "TrainConfig" in text
        else:
            [function] = [function for function in functions(ROOT / name) if function.name == what]
            assert num_parameters(function) > 6
