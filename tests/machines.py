"""Two machines in one: network namespaces with their own addresses and names, joined by a cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Machine:
    """A namespace. Its processes see its own network, and its own /etc/hosts."""

    name: str
    address: str

    def start(self, command: list[str], **options: object) -> subprocess.Popen[str]:
        """Starts a program there."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], text=True, **options)  # type: ignore[call-overload]


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Makes two machines, whose own names resolve to 127.0.1.1 as on Debian. Skips the test where this user may not."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    tag = f"{os.getpid() % 100_000}"
    machines = tuple(Machine(f"m{tag}{end}", f"10.77.0.{number}") for number, end in enumerate("ab", 1))
    cable = [f"v{tag}{end}" for end in "ab"]
    hosts = [Path("/etc/netns") / machine.name for machine in machines]
    try:
        try:
            for machine in machines:
                _ip("netns", "add", machine.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr}")
        _ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for machine, end, folder in zip(machines, cable, hosts, strict=True):
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {os.uname().nodename}\n")
            _ip("link", "set", end, "netns", machine.name)
            inside = ("-n", machine.name)
            _ip(*inside, "addr", "add", f"{machine.address}/24", "dev", end)
            for device in ("lo", end):
                _ip(*inside, "link", "set", device, "up")
        yield machines[0], machines[1]
    finally:
        for machine, folder in zip(machines, hosts, strict=True):
            subprocess.run(["ip", "netns", "del", machine.name], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
