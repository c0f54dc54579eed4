"""The model runner that GPUs take: the engine's tests once more, in a process that takes it too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CASES = Path(__file__).with_name("v2_runner_cases.py")

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_what_holds_for_the_runner_of_cpus_holds_for_that_of_gpus_and_its_experts_are_the_learners(tmp_path: Path):
    command = [sys.executable, "-m", "pytest", "-p", "tests.v2_runner", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["--basetemp", str(tmp_path / "cases"), str(CASES)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:]
