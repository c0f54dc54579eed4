"""The memory and handles of a run's processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rl.hardware.usage import resource_usage, role_of


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("ray::_LearnerActor.step", "learner"),
        ("ray::_EngineActor", "engines"),
        ("VLLM::EngineCore", "engines"),
        ("raylet", "others"),
        ("python", "others"),
    ],
)
def test_a_role_is_known_by_the_name_of_the_process(name: str, role: str):
    assert role_of(name) == role


def test_what_this_process_and_its_children_take_is_counted():
    before = resource_usage()
    program = "kept = bytearray(50_000_000), [open('/dev/null') for _ in range(40)]; print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    files = [open(os.devnull) for _ in range(10)]  # noqa: SIM115 - kept open
    with_child = resource_usage()
    child.communicate(b"\n")
    for file in files:
        file.close()
    others = [usage.get("memory/rss_others", 0.0) for usage in (before, with_child, resource_usage())]
    assert 50e6 < others[1] - others[0] < 100e6 and others[2] == pytest.approx(others[0], abs=5e6)
    opened = with_child["memory/handles"] - before["memory/handles"]
    assert 45 <= opened <= 65  # 10 files here, 40 there, 2 pipes and 3 streams; other tests' may close meanwhile
    assert with_child["memory/rss_driver"] > 10e6 and with_child["memory/shared_bytes"] >= 0
