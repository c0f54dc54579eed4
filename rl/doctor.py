"""Checks this machine: `python -m rl.doctor`. Exits with 1 if the main job (`make quickstart`) cannot run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

State = Literal["ok", "warning", "problem"]
GIB = 2**30
SETUP = "run `make setup`, or install the package again"
REMEDIES = {"torchvision": "run `sapo repair`"}
"""Check → the remedy of a package that cannot be imported, if it is not `SETUP`."""
PACKAGES = ("rl", "rewards", "rollout", "policies", "recipes")
OLDEST_DRIVER = 580
"""Oldest driver of NVIDIA that runs CUDA 13."""
STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check."""

    name: str
    state: State
    """`"problem"` if the main job cannot run, `"warning"` if something is slower or missing."""
    found: str
    """Version, size or error."""
    remedy: str = ""
    """Empty if the state is `"ok"`."""


def finding(name: str, found: str, *, problem: bool = False, warning: bool = False, remedy: str = "") -> Finding:
    """Returns a finding, with the remedy only for a warning or a problem."""
    state: State = "problem" if problem else "warning" if warning else "ok"
    return Finding(name=name, state=state, found=found, remedy="" if state == "ok" else remedy)


def check_python() -> Finding:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return finding("python", found, problem=sys.version_info < (3, 11), remedy="use Python 3.11 or newer")


def check_packages() -> Finding:
    """Checks that the packages of this project are not hidden by others of the same names."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    places = {name: Path(spec.origin).parents[1] for name, spec in specs.items() if spec and spec.origin}
    home = Path(__file__).resolve().parents[1]
    others = [name for name in PACKAGES if name not in places or places[name].resolve() != home]
    found = f"{', '.join(others)} is another's" if others else f"{', '.join(PACKAGES)} at {home}"
    return finding("packages", found, problem=bool(others), remedy="use a virtual environment of its own")


def check_torch() -> Finding:
    """Checks torch's build, devices and threads."""
    torch = importlib.import_module("torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    parts = [torch.__version__, build, *(f"{d.name}, {d.total_memory / GIB:.0f} GiB" for d in devices)]
    parts.append(f"{torch.get_num_threads()} threads")
    remedy = "this machine has an NVIDIA driver, but torch finds no GPU: run `make setup CUDA=1`"
    return finding("torch", ", ".join(parts), warning=not devices and bool(shutil.which("nvidia-smi")), remedy=remedy)


def check_driver() -> Finding:
    """Checks NVIDIA's driver, which the CUDA build of torch needs in a version of its own."""
    if not shutil.which("nvidia-smi"):
        return finding("driver", "no NVIDIA driver: learner and engines run on the CPU")
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return finding("driver", (done.stdout + done.stderr).strip(), warning=True, remedy="repair the driver")
    version = done.stdout.split()[0]
    old = int(version.partition(".")[0]) < OLDEST_DRIVER
    remedy = f"update it to {OLDEST_DRIVER} or newer: the pinned torch is built for CUDA 13"
    return finding("driver", version, warning=old, remedy=remedy)


def check_torchvision() -> Finding:
    """Checks torchvision. Its Python parts suffice; `sapo repair` makes them importable with a CPU build of torch."""
    importlib.import_module("torchvision")
    has_operators = importlib.import_module("torchvision.extension")._has_ops()
    importlib.import_module("torchvision.transforms.v2")
    parts = "with its operators" if has_operators else "Python parts only, which suffice"
    return finding("torchvision", f"{version('torchvision')}, {parts}")


def check_transformers() -> Finding:
    """Checks the classes of Qwen3-VL, and the module that fails first with a broken torchvision."""
    transformers = importlib.import_module("transformers")
    importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")
    missing = [n for n in ("Qwen3VLProcessor", "Qwen3VLMoeForConditionalGeneration") if not hasattr(transformers, n)]
    found = f"{transformers.__version__}, {'without ' + ', '.join(missing) if missing else 'Qwen3-VL dense and MoE'}"
    return finding("transformers", found, problem=bool(missing), remedy=SETUP)


def check_vllm() -> Finding:
    """Checks that vLLM can be imported and finds the weight-transfer plugin of `rollout/`."""
    # In a separate process: a build for another processor crashes instead of raising an error.
    probe = "import vllm; from vllm import AsyncEngineArgs, AsyncLLMEngine; print(vllm.__version__)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return finding("vllm", reason, problem=True, remedy=SETUP)
    registered = any(e.value.startswith("rollout.weights.plugin:") for e in entry_points(group="vllm.general_plugins"))
    found = f"{done.stdout.split()[-1]}, weight-transfer plugin {'registered' if registered else 'not registered'}"
    return finding("vllm", found, problem=not registered, remedy="run `pip install -e . --no-deps` in the repository")


def check_ray() -> Finding:
    ray = importlib.import_module("ray")
    where = os.environ.get("RAY_ADDRESS") or f"will start here with {len(os.sched_getaffinity(0))} CPUs"
    return finding("ray", f"{ray.__version__}, {where}")


def check_placement() -> Finding:
    """Reports the placements that this machine's GPUs allow."""
    from rl.hardware.placement import possible_placements

    gpus = [importlib.import_module("torch").cuda.device_count()]
    if not gpus[0]:
        return finding("placement", "no GPU: learner and engines run on the CPU")
    return finding("placement", "; ".join(possible_placements(gpus)))


def check_memory() -> Finding:
    """Checks the free memory."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    gib = {name: int(kib) * 1024 / GIB for name, kib, *_ in lines}
    available, total = gib["MemAvailable:"], gib["MemTotal:"]
    remedy = "close other programs: the small runs take about 6 GiB"
    return finding("memory", f"{available:.1f} of {total:.1f} GiB available", warning=available < 6, remedy=remedy)


def check_memfd() -> Finding:
    """Checks anonymous memory files, which carry the weights from learner to engines."""
    try:
        os.close(os.memfd_create("doctor"))
    except (AttributeError, OSError) as error:
        return finding("memfd", str(error), problem=True, remedy="use Linux: weights go to the engines through memfd")
    return finding("memfd", "anonymous shared memory for weights")


def check_shm() -> Finding:
    size = shutil.disk_usage("/dev/shm").total / GIB
    remedy = "give the container more (`--shm-size=8g`): without it Ray uses slower files"
    return finding("/dev/shm", f"{size:.1f} GiB for Ray's object store", warning=size < 2, remedy=remedy)


def check_wandb() -> Finding:
    """Checks the login of wandb."""
    logged_in = importlib.import_module("wandb").login(prompt=False, verify=False)
    found = "logged in" if logged_in else "not logged in: runs are recorded offline"
    return finding(
        "wandb", f"{version('wandb')}, {found}", warning=not logged_in, remedy="`wandb login` records online"
    )


def check_disk() -> Finding:
    free = shutil.disk_usage(".").free / GIB
    return finding("disk", f"{free:.0f} GiB free here", problem=free < 1, warning=free < 10, remedy="free some space")


def check_video() -> Finding:
    """Checks that video files can be decoded."""
    cv2 = importlib.import_module("cv2")
    return finding("video", f"OpenCV {cv2.__version__} decodes video files")


def check_sandbox() -> Finding:
    """Checks that the reward `code_tests` can isolate the programs that it runs."""
    from rewards.code.sandbox import unavailable_reason

    reason = unavailable_reason()
    found = reason or "bubblewrap isolates programs that a policy writes"
    return finding(
        "sandbox", found, warning=reason is not None, remedy="`apt-get install bubblewrap`, if you use code_tests"
    )


def check_text_tasks() -> Finding:
    """Checks that reasoning-gym is installed; its installation needs a C compiler."""
    return finding("text tasks", f"reasoning-gym {version('reasoning-gym')} makes them")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "packages": check_packages,
    "torch": check_torch,
    "driver": check_driver,
    "torchvision": check_torchvision,
    "transformers": check_transformers,
    "vllm": check_vllm,
    "ray": check_ray,
    "placement": check_placement,
    "memory": check_memory,
    "memfd": check_memfd,
    "/dev/shm": check_shm,
    "wandb": check_wandb,
    "disk": check_disk,
    "video": check_video,
    "sandbox": check_sandbox,
    "text tasks": check_text_tasks,
}
NEEDED = {"python", "packages", "torch", "torchvision", "transformers", "vllm", "ray", "memfd"}


def examine(name: str) -> Finding:
    """Runs one check. An exception becomes a finding, so that a broken package does not hide the rest of the report."""
    try:
        return CHECKS[name]()
    except (ModuleNotFoundError, PackageNotFoundError) as error:
        found = f"not installed ({error})"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    return finding(name, found, problem=name in NEEDED, warning=True, remedy=REMEDIES.get(name, SETUP))


def findings_table(findings: Sequence[Finding]) -> Table:
    """Returns the table of all findings."""
    table = Table("", "state", "found", "remedy")
    for finding in findings:
        style = STYLES[finding.state]
        table.add_row(finding.name, f"[{style}]{finding.state}[/]", escape(finding.found), escape(finding.remedy))
    return table


def main() -> int:
    """Prints the report, and returns 1 if the main job cannot run, else 0."""
    console = Console()
    with console.status("checking this machine, about 20 seconds"):
        findings = [examine(name) for name in CHECKS]
    console.print(findings_table(findings))
    problems = [finding.name for finding in findings if finding.state == "problem"]
    console.print(f"The main job cannot run: {', '.join(problems)}." if problems else "The main job can run.")
    return int(bool(problems))


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog=os.environ.get("SAPO_PROGRAM", "python -m rl.doctor"), description=__doc__
    ).parse_args()
    sys.exit(main())
