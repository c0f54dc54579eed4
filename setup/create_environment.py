"""Creates `.venv` and installs this project into it, in a few lines of output.

Usage: python3.11 setup/create_environment.py [--cuda | --upgrade]      (standard library only)

A CPU build of torch is taken from the package index that pip is configured with and, only where that has none, from
PyTorch's own CPU index: torch's CUDA build and its gigabytes of libraries never reach a machine that did not ask for it.
"""

from __future__ import annotations  # an older Python must get as far as the sentence that names the needed one

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "set-up.log"
CONSTRAINTS = ROOT / "constraints.txt"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@contextmanager
def phase(title: str) -> Iterator[None]:
    """Prints what is being done and, at the end, how long it took."""
    print(f"set-up: {title} ...", end=" ", flush=True)
    begin = time.monotonic()
    yield
    print(f"{time.monotonic() - begin:.0f} s", flush=True)


def fail(output: str, sentence: str) -> None:
    """Ends the set-up with the end of a failed command's output and one clear sentence."""
    tail = "\n".join(output.splitlines()[-15:])
    sys.exit(f"failed\n{tail}\n\nset-up failed: {sentence}")


def run(*command: str | Path) -> tuple[bool, str]:
    """Runs a command, its output appended to the log. Returns whether it succeeded, and that output."""
    arguments = [str(part) for part in command]
    done = subprocess.run(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(arguments)}\n{done.stdout}\n")
    return done.returncode == 0, done.stdout


def pip_install(*arguments: str | Path) -> tuple[bool, str]:
    return run(PYTHON, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments)


def create_venv(anew: bool) -> None:
    """Creates the virtual environment, or keeps the one that is there unless `anew`."""
    if anew:
        shutil.rmtree(VENV, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if done.returncode:
        remedy = "On Debian and Ubuntu, install the package python3-venv."
        fail(done.stdout + done.stderr, f"{sys.executable} cannot create a virtual environment. {remedy}")


def install_cpu_torch() -> list[str]:
    """Installs torch's CPU build. Returns the pip options by which its companions are found as CPU builds, too."""
    pin = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert pin, f"{CONSTRAINTS.name} pins no torch"
    # On Linux a local version marks a CPU build; elsewhere the plain build is the CPU build.
    requirement = f"torch=={pin[1]}" + ("+cpu" if platform.system() == "Linux" else "")
    found, _ = pip_install(requirement, "--no-deps")
    if found:
        return []
    print("from PyTorch's CPU index ...", end=" ", flush=True)
    options = ["--extra-index-url", PYTORCH_CPU_INDEX]
    found, output = pip_install(requirement, "--no-deps", *options)
    if not found:
        fail(output, f"{requirement} is neither in the index that pip is configured with nor in {PYTORCH_CPU_INDEX}.")
    return options


def install_project(extras: str, *options: str) -> None:
    """Installs the project in place, with what it depends on."""
    done, output = pip_install("--editable", f".[{extras}]", *options)
    if not done:
        fail(output, f"pip could not install .[{extras}]; all of its output is in {LOG.relative_to(ROOT)}.")


def install_sandbox() -> None:
    """Installs bubblewrap, in which the reward `code_tests` runs programs, where this user may; else says what to do."""
    if shutil.which("bwrap"):
        return
    with phase("bubblewrap, for programs that a policy writes"):
        may = shutil.which("apt-get") and os.geteuid() == 0
        done = may and (run("apt-get", "update")[0], run("apt-get", "install", "--yes", "bubblewrap")[0])[1]
        if not done:
            print("not installed; only the reward `code_tests` needs it: `apt-get install bubblewrap` ...", end=" ")


def install_text_tasks(*options: str) -> None:
    """Installs reasoning-gym where a C compiler can build a part of it; else says what to do."""
    with phase("reasoning-gym, for text tasks"):
        done, _ = pip_install("--editable", ".[tasks]", *options)
        if not done:
            print(
                "not installed; only recipes with text tasks need it: install a C compiler, `make setup` ...", end=" "
            )


def check_imports() -> None:
    """Repairs torchvision and its like where needed, and imports the packages that have compiled parts."""
    for command in (["-m", "rl.hardware.repair"], ["-c", "import torchvision, ray; from vllm import AsyncEngineArgs"]):
        done, output = run(PYTHON, *command)
        if not done:
            fail(output, "an installed package cannot be imported. Try `make clean setup`.")


def resolve_for_gpus() -> tuple[bool, str]:
    """Resolves the CUDA build with these pins, from metadata alone. Returns whether that is possible, and uv's output."""
    _, index = run(PYTHON, "-m", "pip", "config", "get", "global.index-url")
    configured = ["--default-index", index.strip()] if index.startswith("http") else []
    command = [
        PYTHON,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--system-certs",
        "--python-platform",
        "x86_64-manylinux_2_28",
    ]
    return run(*command, *configured, "--extra", "cuda", "--constraint", CONSTRAINTS, "pyproject.toml")


def write_constraints() -> None:
    """Pins what is installed, without local versions such as `+cpu`, and without what each build of torch pins for itself."""
    _, frozen = run(PYTHON, "-m", "pip", "freeze", "--all", "--exclude-editable", "--exclude", "pip")
    header = CONSTRAINTS.read_text(encoding="utf-8").splitlines()[0]
    pins = [re.sub(r"\+\S+$", "", line) for line in frozen.splitlines() if not line.startswith("triton==")]
    CONSTRAINTS.write_text("\n".join([header, *pins]) + "\n", encoding="utf-8")
    resolves, output = resolve_for_gpus()
    if not resolves:
        fail(output, f"with {CONSTRAINTS.name} as written, `.[cuda]` cannot be resolved.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--cuda", action="store_true", help="install torch and vLLM for NVIDIA GPUs")
    choice.add_argument("--upgrade", action="store_true", help="ignore constraints.txt and write it anew")
    options = parser.parse_args()
    if sys.version_info < (3, 11):
        found = f"{sys.executable} is Python {platform.python_version()}"
        sys.exit(
            f"set-up failed: Python 3.11 or newer is needed, and {found}. Name one by `make PYTHON=/path/to/python`."
        )
    if not options.cuda and shutil.which("nvidia-smi"):
        print("set-up: an NVIDIA driver is here; `make setup CUDA=1` installs the build that uses the GPU")

    kind, other = ("cuda", "cpu") if options.cuda else ("cpu", "cuda")
    with phase(f"virtual environment .venv with Python {platform.python_version()}"):
        create_venv(anew=options.upgrade or (VENV / f".set-up-{other}").exists())
    pip_options = [] if options.upgrade else ["--constraint", str(CONSTRAINTS)]
    if kind == "cpu":
        with phase("torch, CPU build"):
            pip_options += install_cpu_torch()
    with phase("vLLM, Ray, transformers and the rest, 4 GB on disk"):
        install_project(f"{kind},dev", *pip_options)
    install_text_tasks(*pip_options)
    install_sandbox()
    with phase("check of the compiled packages"):
        check_imports()
    if options.upgrade:
        write_constraints()
    (VENV / f".set-up-{kind}").touch()


if __name__ == "__main__":
    main()
